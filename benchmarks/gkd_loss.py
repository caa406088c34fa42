"""Time and memory of GroupedKD, forward and backward, beside the authors' formulation and a floor.

    python benchmarks/gkd_loss.py [--samples 64] [--classes 85742 360232 1000000 2000000] [--repeats 9] [--threads 1]
        [--groupings top_k cumulative_mass] [--device cpu] [--json OUT] [--plot OUT.png]

author: the formulation of the authors' public code (WisonZ/GKD), written here anew: the target by a mask; a full sort
    of every row of the student's logits for the K best (in the adaptive form, of the class masses too, for K);
    softmaxes at T = 4 in which -1000 stands for "not of this group"; masses by masked sums; kl_div; backward by
    autograd. It is left out where it would need more memory than --gib.
gkd: GroupedKD.
floor: both logits read once and one matrix written once, into memory that is there already: torch.add with `out`.
new: the same into memory that the kernel has yet to give, as that of every returned gradient: torch.add without `out`.

Every figure comes from a fresh process. Times are medians over --repeats runs of forward and backward together, fewer
where they take more than 10 seconds. Extra memory is in units of one (N, C) fp32 matrix, and neither the inputs nor the
returned gradient count: on the CPU it is the growth of the process's peak resident memory over the first run, measured
from where the inputs exist and a run of two samples has loaded all code, less the gradient; on a GPU the same with the
allocator's peak. Where one process would need more than --gib gibibytes, N is lowered, and printed.
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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.distill import CumulativeMass, GroupedKD, TopK

TEMPERATURE, PRIMARY_WEIGHT, K, THRESHOLD, K_STEP = 4.0, 8.0, 10_000, 0.93, 100
GIBIBYTE = 2**30
MOST_SECONDS = 10.0
# Matrices of (N, C) fp32 that a process holds at its peak, inputs and gradient included.
MATRICES = {"author": 19, "gkd": 4, "floor": 3, "new": 3}

HEAD = (
    f"{'grouping':16} {'C':>8} {'N':>4} {'author':>9} {'gkd':>8} {'floor':>7} {'new':>7} {'author/gkd':>11} "
    f"{'gkd/floor':>10} {'gkd/new':>8} {'extra: author':>14} {'gkd':>6}"
)
# Colour and name in the plot.
STYLES = {
    "author": ("#D55E00", "authors' formulation"),
    "gkd": ("#0072B2", "GroupedKD"),
    "floor": ("#555555", "read and write once"),
    "new": ("#AAAAAA", "the same into new memory"),
}


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    variant: str
    grouping: str
    samples: int
    classes: int
    repeats: int
    threads: int
    device: str


@dataclass(frozen=True)
class Result:
    """Median seconds of forward and backward, extra memory in (N, C) matrices, and the loss (0 for the floor)."""

    seconds: float
    extra_matrices: float
    total: float


def author_loss(student: Tensor, teacher: Tensor, labels: Tensor, grouping: str) -> Tensor:
    """8·primary + binary as the formulation of the authors' public code (WisonZ/GKD) has it."""
    target = torch.zeros_like(student).scatter_(1, labels[:, None], 1.0)
    scores = student.detach()
    k = min(K, student.shape[1])
    if grouping == "cumulative_mass":
        mass = scores.softmax(dim=1).sum(dim=0).sort(descending=True).values.cumsum(dim=0)
        short = int((mass < THRESHOLD * len(student)).sum())
        k = min(1 + -(-short // K_STEP) * K_STEP, student.shape[1])
    order = scores.sort(dim=1, descending=True).indices
    mask = torch.zeros_like(student).scatter_(1, order[:, :k], 1.0)
    mask = (mask + target).clamp(max=1.0)
    student, teacher = student / TEMPERATURE, teacher / TEMPERATURE
    student_masses, teacher_masses = (_masses(logits.softmax(dim=1), mask) for logits in (student, teacher))
    binary = F.kl_div(student_masses.log(), teacher_masses, reduction="batchmean")
    outside = -1000.0 * (1.0 - mask)
    inside_student = (student + outside).log_softmax(dim=1)
    primary = F.kl_div(inside_student, (teacher + outside).softmax(dim=1), reduction="batchmean")
    return TEMPERATURE**2 * (PRIMARY_WEIGHT * primary + binary)


def _masses(probabilities: Tensor, mask: Tensor) -> Tensor:
    return torch.stack(((probabilities * mask).sum(dim=1), (probabilities * (1.0 - mask)).sum(dim=1)), dim=1)


def inputs(setting: Setting) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled logits with margin that are alike but not equal: s = 64, cosines of sd 0.06, targets near 0.5."""
    generator = torch.Generator().manual_seed(0)
    shape = (setting.samples, setting.classes)
    teacher, student = torch.empty(shape), torch.empty(shape)
    labels = torch.randint(0, setting.classes, shape[:1], generator=generator)
    for row, label in enumerate(labels.tolist()):  # by rows, so that no temporary raises the peak
        teacher[row].normal_(0.0, 0.06 * 64, generator=generator)
        student[row].normal_(0.0, 0.02 * 64, generator=generator).add_(teacher[row])
        student[row, label], teacher[row, label] = 0.2 * 64, 0.3 * 64
    return student.to(setting.device), teacher.to(setting.device), labels.to(setting.device)


def step_of(setting: Setting) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Forward and backward of a variant: (student, teacher, labels) -> loss."""
    grouping = TopK(k=K) if setting.grouping == "top_k" else CumulativeMass(threshold=THRESHOLD, k_step=K_STEP)
    ours = GroupedKD(temperature=TEMPERATURE, primary_weight=PRIMARY_WEIGHT, grouping=grouping)

    def step(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        student.grad = None
        if setting.variant == "author":
            total = author_loss(student, teacher, labels, setting.grouping)
        else:
            total = ours(student, teacher, labels).total
        torch.autograd.backward(total)
        return total.detach()

    return step


def floor_step(student: Tensor, is_there: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    out = torch.zeros_like(student)

    def step(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        return torch.add(student, teacher, out=out) if is_there else torch.add(student, teacher)

    return step


def peak_bytes(device: str) -> int:
    """The most memory used so far: of the process on the CPU, of the allocator on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(setting: Setting) -> Result:
    """Run one setting in this process."""
    torch.set_num_threads(setting.threads)
    student, teacher, labels = inputs(setting)
    if setting.variant in ("floor", "new"):
        return Result(
            median_seconds(floor_step(student, setting.variant == "floor"), (student, teacher, labels), setting),
            0.0,
            0.0,
        )
    step = step_of(setting)
    tiny = [tensor[:2, :20_000] if tensor.ndim == 2 else tensor[:2] % 20_000 for tensor in (student, teacher, labels)]
    step(tiny[0].clone().requires_grad_(), tiny[1], tiny[2])
    student.requires_grad_()
    before = peak_bytes(setting.device)
    total = step(student, teacher, labels).item()
    matrix = student.numel() * student.element_size()
    extra = (peak_bytes(setting.device) - before - matrix) / matrix
    return Result(median_seconds(step, (student, teacher, labels), setting), max(0.0, extra), total)


def median_seconds(step: Callable[..., Tensor], tensors: tuple[Tensor, ...], setting: Setting) -> float:
    step(*tensors)
    seconds: list[float] = []
    while len(seconds) < setting.repeats and sum(seconds) < MOST_SECONDS:
        start = now(setting.device)
        step(*tensors)
        seconds.append(now(setting.device) - start)
    return statistics.median(seconds)


def in_fresh_process(setting: Setting) -> Result:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (setting,))


def compare(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every setting and print the table."""
    print(f"{arguments.device}, {arguments.threads} thread(s), torch {torch.__version__}; milliseconds")
    print(HEAD)
    rows = []
    for num_classes in arguments.classes:
        matrix_gib = num_classes * 4 / GIBIBYTE
        samples = max(1, min(arguments.samples, int(arguments.gib / (MATRICES["gkd"] * matrix_gib))))
        has_author = MATRICES["author"] * matrix_gib * samples <= arguments.gib
        floors: dict[str, dict[str, Any]] = {}
        for grouping in arguments.groupings:
            row: dict[str, Any] = {"grouping": grouping, "classes": num_classes, "samples": samples}
            for variant in ("floor", "new", "author", "gkd"):
                setting = Setting(variant, grouping, samples, num_classes, arguments.repeats, arguments.threads,
                                  arguments.device)  # fmt: skip
                if variant in ("floor", "new"):
                    if variant not in floors:
                        floors[variant] = asdict(in_fresh_process(setting))
                    row[variant] = floors[variant]
                elif variant == "gkd" or has_author:
                    row[variant] = asdict(in_fresh_process(setting))
            rows.append(row)
            print(line_of(row), flush=True)
        if not has_author:
            print(f"(author left out at C = {num_classes}: about {MATRICES['author'] * matrix_gib * samples:.0f} GiB, "
                  f"and --gib is {arguments.gib:g})")  # fmt: skip
    return rows


def line_of(row: dict[str, Any]) -> str:
    gkd, floor, new, author = row["gkd"], row["floor"], row["new"], row.get("author")
    start = f"{row['grouping']:16} {row['classes']:8} {row['samples']:4} "
    times = f"{gkd['seconds'] * 1e3:8.1f} {floor['seconds'] * 1e3:7.2f} {new['seconds'] * 1e3:7.2f} "
    over_floor = f"{gkd['seconds'] / floor['seconds']:10.1f} {gkd['seconds'] / new['seconds']:8.1f} "
    if author is None:
        return f"{start}{'-':>9} {times}{'-':>11} {over_floor}{'-':>14} {gkd['extra_matrices']:6.2f}"
    if abs(author["total"] - gkd["total"]) > 1e-3 * abs(gkd["total"]):
        raise SystemExit(f"the losses differ: {author['total']} and {gkd['total']}")
    return (f"{start}{author['seconds'] * 1e3:9.1f} {times}{author['seconds'] / gkd['seconds']:11.1f} {over_floor}"
            f"{author['extra_matrices']:14.1f} {gkd['extra_matrices']:6.2f}")  # fmt: skip


def plot(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Milliseconds a sample against the number of classes, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 4.2), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    for number, grouping in enumerate(dict.fromkeys(row["grouping"] for row in rows)):
        for variant, (color, name) in STYLES.items():
            points = [(row["classes"], row[variant]["seconds"] * 1e3 / row["samples"])
                      for row in rows if row["grouping"] == grouping and variant in row]  # fmt: skip
            if points and not (variant in ("floor", "new") and number):
                label = name if variant in ("floor", "new") else f"{name}, {grouping}"
                axes.plot(*zip(*points, strict=True), marker="o", color=color, linestyle="-" if number == 0 else "--",
                          label=label)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="Classes", ylabel="Forward and backward, ms a sample", title=title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--classes", type=int, nargs="+", default=[85_742, 360_232, 1_000_000, 2_000_000])
    groupings = ("top_k", "cumulative_mass")
    parser.add_argument("--groupings", choices=groupings, nargs="+", default=list(groupings))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--gib", type=float, default=8.0, help="the most memory that one process may take")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--plot", type=Path, help="also draw them into this PNG file")
    arguments = parser.parse_args()
    rows = compare(arguments)
    if arguments.json:
        head = {"device": arguments.device, "threads": arguments.threads, "torch": torch.__version__}
        arguments.json.write_text(json.dumps({**head, "rows": rows}, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot, f"GroupedKD, {arguments.device}, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
