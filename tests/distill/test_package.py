"""What holds for every loss of the table, and for the package as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd.core.types import Losses
from gkd.distill import LOSSES, DistillLoss, GroupedKD

BLOCKED_IMPORT = """
import sys, warnings
warnings.simplefilter("ignore")
for name in ("numpy", "cv2", "pydantic", "yaml", "PIL", "timm", "onnx"):
    sys.modules[name] = None
import torch
from gkd.distill import GroupedKD, TopK
logits = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
GroupedKD(grouping=TopK(k=2))(logits, torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])).total.backward()
assert logits.grad.isfinite().all()
print("ran")
"""


def test_the_table_names_the_losses() -> None:
    assert {"gkd": GroupedKD} == LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_contract_of_a_loss(name: str) -> None:
    torch.manual_seed(0)
    loss = LOSSES[name]()
    assert isinstance(loss, DistillLoss)
    assert loss.needs <= {"logits"}
    student, teacher, labels = torch.randn(3, 9).requires_grad_(), torch.randn(3, 9), torch.tensor([0, 8, 4])
    losses = loss(student, teacher, labels)
    assert isinstance(losses, Losses)
    assert all(value.shape == () for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
    for value in (losses.total, *losses.parts.values()):
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert gradient.isfinite().all()
    assert float(loss(teacher, teacher, labels).total) == 0


def test_the_package_runs_with_torch_alone() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", BLOCKED_IMPORT], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ran", done.stderr
