"""Time and peak memory of GroupedKD, forward and backward, beside the same loss written with plain autograd.

    python benchmarks/gkd_loss.py [--samples 64] [--classes 85742] [--repeats 7] [--device cpu] [--json OUT]

Each variant runs in a process of its own, so that peaks do not mix. The plain version follows the formulas directly
(softmax, sort, masked sums, log) and lets autograd record them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.distill import CumulativeMass, GroupedKD, TopK

TEMPERATURE = 4.0
MEBIBYTE = 2**20


@dataclass(frozen=True)
class Setting:
    """What is measured: one grouping in one of the two implementations."""

    grouping: str
    is_plain: bool
    samples: int
    classes: int
    repeats: int
    device: str
    threads: int


@dataclass(frozen=True)
class Result:
    """Medians over the repeats; the peak is what forward and backward add to the inputs, the gradient included."""

    forward_seconds: float
    backward_seconds: float
    peak_mib: float
    total: float


def plain_groups(logits: Tensor, labels: Tensor, grouping: str) -> Tensor:
    """Primary from full sorts: k = 10,000, or a batch mass of 0.93."""
    k = min(10_000, logits.shape[1])
    if grouping == "cumulative_mass":
        mass = logits.softmax(dim=1).sum(dim=0).sort(descending=True).values.cumsum(dim=0)
        k = min(int((mass < 0.93 * len(logits)).sum()) + 1, logits.shape[1])
    others = logits.scatter(1, labels[:, None], torch.inf)
    order = others.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(1, order[:, :k], True)


def plain_loss(student: Tensor, teacher: Tensor, labels: Tensor, grouping: str) -> Tensor:
    """8·primary + binary with T = 4, recorded by autograd."""
    is_primary = plain_groups(student.detach(), labels, grouping)
    p_student, p_teacher = (student / TEMPERATURE).softmax(dim=1), (teacher / TEMPERATURE).softmax(dim=1)
    binary, inside = torch.zeros((), device=student.device), []
    for group in (is_primary, ~is_primary):
        b_student, b_teacher = (p_student * group).sum(dim=1), (p_teacher * group).sum(dim=1)
        binary = binary + (b_teacher * (b_teacher.log() - b_student.log())).mean()
        inside.append((p_student * group / b_student[:, None], p_teacher * group / b_teacher[:, None]))
    p_student, p_teacher = inside[0]
    ratio = (p_teacher.clamp_min(1e-30) / p_student.clamp_min(1e-30)).log()
    total: Tensor = TEMPERATURE**2 * (8 * (p_teacher * ratio).sum(dim=1).mean() + binary)
    return total


def inputs(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits with margin that are alike but not equal: s = 64, cosines of sd 0.06, targets near 0.5."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.samples, setting.classes)
    teacher = torch.randn(shape, generator=generator).mul_(0.06 * 64)
    student = torch.randn(shape, generator=generator).mul_(0.02 * 64).add_(teacher)
    labels = torch.randint(0, setting.classes, shape[:1], generator=generator)
    student.scatter_(1, labels[:, None], 0.2 * 64)
    teacher.scatter_(1, labels[:, None], 0.3 * 64)
    return student.to(setting.device), teacher.to(setting.device), labels.to(setting.device)


def peak_bytes(device: str) -> int:
    """The most memory used so far: of the process on the CPU, of the allocator on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(setting: Setting) -> Result:
    """Run one setting in this process."""
    torch.set_num_threads(setting.threads)
    student, teacher, labels = inputs(setting)
    student.requires_grad_()
    ours = GroupedKD(grouping=TopK() if setting.grouping == "top_k" else CumulativeMass())

    def loss() -> Tensor:
        if setting.is_plain:
            return plain_loss(student, teacher, labels, setting.grouping)
        total: Tensor = ours(student, teacher, labels).total
        return total

    return repeat(loss, student, setting)


def repeat(loss: Callable[[], Tensor], student: Tensor, setting: Setting) -> Result:
    """Medians of `setting.repeats` runs after one to warm up."""
    forward, backward = [], []
    before = peak_bytes(setting.device)
    for _ in range(setting.repeats + 1):
        student.grad = None
        start = now(setting.device)
        total = loss()
        middle = now(setting.device)
        torch.autograd.backward(total)
        forward.append(middle - start)
        backward.append(now(setting.device) - middle)
    peak = (peak_bytes(setting.device) - before) / MEBIBYTE
    return Result(statistics.median(forward[1:]), statistics.median(backward[1:]), peak, total.item())


def compare(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every variant, each in a fresh process, and print the table."""
    print(f"{'grouping':16} {'version':8} {'forward s':>10} {'backward s':>10} {'peak MiB':>9} {'total':>10}")
    rows: list[dict[str, object]] = []
    for grouping in ("top_k", "cumulative_mass"):
        pair = []
        for is_plain in (True, False):
            setting = Setting(grouping, is_plain, arguments.samples, arguments.classes, arguments.repeats,
                              arguments.device, arguments.threads)  # fmt: skip
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                result = pool.apply(measure, (setting,))
            pair.append(result)
            rows.append({**asdict(setting), **asdict(result), "torch": torch.__version__})
            print(f"{grouping:16} {'plain' if is_plain else 'gkd':8} {result.forward_seconds:10.3f} "
                  f"{result.backward_seconds:10.3f} {result.peak_mib:9.0f} {result.total:10.5f}")  # fmt: skip
        plain, ours = pair
        seconds = [result.forward_seconds + result.backward_seconds for result in pair]
        print(
            f"{grouping:16} {seconds[0] / seconds[1]:.1f} times faster, {plain.peak_mib / ours.peak_mib:.1f} times less"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--classes", type=int, default=85_742)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    rows = compare(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
