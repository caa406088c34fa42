"""What holds for every loss of the table, and for the package as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gkd import build
from gkd.core.config import parse_config
from gkd.core.errors import ConfigError
from gkd.core.types import Losses
from gkd.distill import (
    LOSSES,
    NEEDS,
    DecoupledKD,
    DistillLoss,
    EmbeddingDistillation,
    GroupedKD,
    KnowledgeDistillation,
    RelationalKD,
)
from gkd.schema import TrainRun

BLOCKED_IMPORT = """
import sys, warnings
warnings.simplefilter("ignore")
for name in ("numpy", "cv2", "pydantic", "yaml", "PIL", "timm", "onnx"):
    sys.modules[name] = None
import torch
from gkd.distill import LOSSES
for name, loss in LOSSES.items():
    student = torch.tensor([[1.0, 2.0, 0.5]], requires_grad=True)
    loss()(student, torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([0])).total.backward()
    assert student.grad.isfinite().all(), name
print("ran")
"""


CONFIG = """
run: {folder: runs/here}
data: {train: {name: recordio, path: train.rec}}
backbone: {name: mobilefacenet}
margin: {name: cosface}
teacher: {run: runs/teacher, check_pairs: pairs.bin, min_accuracy: 0.5, min_train_rank1: 0.5}
distill: [{loss: LOSS}]
optim: {lr: 0.1}
train: {epochs: 1, batch_size: 8}
"""


def test_the_table_names_the_losses() -> None:
    assert {
        "gkd": GroupedKD,
        "kd": KnowledgeDistillation,
        "dkd": DecoupledKD,
        "embedding": EmbeddingDistillation,
        "rkd": RelationalKD,
    } == LOSSES


@pytest.mark.parametrize("name", LOSSES)
def test_contract_of_a_loss(name: str) -> None:
    torch.manual_seed(0)
    loss = LOSSES[name]()
    loss.set_dims(9, 9)
    assert isinstance(loss, DistillLoss)
    assert loss.needs
    assert loss.needs <= set(NEEDS)
    assert list(loss.parameters()) == []
    student, teacher, labels = torch.randn(3, 9).requires_grad_(), torch.randn(3, 9), torch.tensor([0, 8, 4])
    given = [tensor for kind in NEEDS if kind in loss.needs for tensor in (student, teacher)]
    losses = loss(*given, labels)
    assert isinstance(losses, Losses)
    assert all(value.shape == () for value in (losses.total, *losses.parts.values(), *losses.stats.values()))
    assert not any(value.requires_grad for value in losses.stats.values())
    for value in (losses.total, *losses.parts.values()):
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert gradient.isfinite().all()
    assert float(loss(teacher, teacher, labels).total) == 0


def test_a_loss_without_a_forward_cannot_be_made() -> None:
    class Empty(DistillLoss):
        needs = frozenset({"logits"})

    with pytest.raises(TypeError, match="abstract"):
        Empty()  # type: ignore[abstract]


@pytest.mark.parametrize(
    "settings",
    [
        "{name: kd, temperature: 2}",
        "{name: dkd, target_weight: 0.5, non_target_weight: 4}",
        "{name: embedding, distance: l2}",
        "{name: rkd, angle_weight: 0}",
        "kd",
        "dkd",
        "embedding",
        "rkd",
    ],
)
def test_a_config_names_a_loss(settings: str) -> None:
    (term,) = build.build_terms(parse_config(CONFIG.replace("LOSS", settings), TrainRun, where="here"))
    assert type(term.loss) is LOSSES[term.name]
    assert term.name in settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("{name: kd, temperature: 0}", "kd.temperature must be a number above 0, got 0"),
        ("{name: embedding, distance: l1}", "distance: expected"),
        ("{name: rkd, distance_weight: -1}", "rkd.distance_weight must be a number of at least 0, got -1"),
        ("{name: dkg}", "unknown name `dkg`; did you mean `"),
    ],
)
def test_a_config_with_a_wrong_loss_is_refused_with_its_line(settings: str, message: str) -> None:
    with pytest.raises(ConfigError, match="line 7 ") as refusal:
        parse_config(CONFIG.replace("LOSS", settings), TrainRun, where="here")
    assert message in str(refusal.value)


def test_terms_of_one_loss_are_numbered_by_the_name_of_the_loss() -> None:
    losses = ("gkd", "kd", "gkd", "embedding", "kd", "gkd")
    several = CONFIG.replace("[{loss: LOSS}]", "[" + ", ".join(f"{{loss: {name}}}" for name in losses) + "]")
    terms = build.build_terms(parse_config(several, TrainRun, where="here"))
    assert [term.name for term in terms] == ["gkd", "kd", "gkd_2", "embedding", "kd_2", "gkd_3"]


def test_the_package_runs_with_torch_alone() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", BLOCKED_IMPORT], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ran", done.stderr
