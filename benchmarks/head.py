"""Time and memory of a head with Grouped KD, forward and backward, against the number of classes.

    python benchmarks/head.py [--samples 64] [--dim 512] [--classes 85742 360232 1000000 2000000] [--device cpu]
                              [--repeats 3] [--threads 1] [--precision fp32] [--json OUT] [--plot OUT.png]

Embeddings and class weights of student and teacher go in; the gradients of the student's come out. The variants:
  softmax     the replicated head: whole (N, C) cosines, margin, cross entropy and GroupedKD
  sharded     the fused head on one rank: scores a chunk of classes at a time, never whole
  partial_fc  the same over a tenth of the classes
Each runs in a process of its own. `extra` is the peak of memory beyond the inputs and the returned gradients, in MiB
and as a part of one fp32 (N, C) matrix, by what torch's allocators were asked for (on the CPU by its profiler;
buffers inside of libraries are not seen). `products` is the time of the four matrix products that no way can do
without (the scores of both networks, and the student's two gradients), as the physical limit; for partial_fc a tenth of
it. A variant that does not fit in `--memory-gib` is left out, with a line that says so.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.distill import CumulativeMass, GroupedKD, TopK
from gkd.heads import CosFace, PartialFCHead, ShardedHead, SoftmaxHead
from gkd.train.fused_head import TeacherClasses, fused_losses

MEBIBYTE = 2**20
GROUPINGS = {"top_k": TopK, "cumulative_mass": CumulativeMass}
VARIANTS = ("softmax", "sharded", "partial_fc")


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    variant: str
    grouping: str
    samples: int
    dim: int
    classes: int
    repeats: int
    device: str
    threads: int
    precision: str


@dataclass(frozen=True)
class Result:
    """Medians over the repeats; `extra_mib` is the peak beyond inputs and returned gradients."""

    seconds: float
    product_seconds: float
    extra_mib: float
    total: float


def needed_gib(setting: Setting) -> float:
    """Inputs, gradients and what the variant is known to hold besides."""
    weights = setting.classes * setting.dim * 4
    matrices = {"softmax": 6, "sharded": 1, "partial_fc": 1}[setting.variant]
    gradient = weights if setting.variant != "partial_fc" else weights // 10
    return (2 * weights + gradient + matrices * setting.samples * setting.classes * 4) / 2**30


class Step:
    """One step of a variant: call it for the loss and the gradients."""

    def __init__(self, setting: Setting) -> None:
        generator = torch.Generator().manual_seed(0)
        samples, dim, classes = setting.samples, setting.dim, setting.classes
        self.setting = setting
        self.margin = CosFace()
        self.loss = GroupedKD(grouping=GROUPINGS[setting.grouping]())
        self.labels = torch.randint(0, classes, (samples,), generator=generator).to(setting.device)
        self.teacher_weight = torch.randn(classes, dim, generator=generator).to(setting.device)
        with torch.device("meta"):
            self.head = self._head(dim, classes)
        # Like the teacher's, as after some training: else every cosine is noise.
        noise = torch.randn(classes, dim, generator=generator).to(setting.device)
        weight = noise.mul_(0.3).add_(self.teacher_weight)
        self.head.weight = torch.nn.Parameter(weight)
        self.teacher_head = SoftmaxHead.__new__(SoftmaxHead)
        torch.nn.Module.__init__(self.teacher_head)
        self.teacher_head.weight = torch.nn.Parameter(self.teacher_weight, requires_grad=False)
        spread = torch.randn(2, samples, dim, generator=generator).to(setting.device)
        own = self.teacher_weight[self.labels]
        self.embeddings = (own + spread[0]).requires_grad_()
        self.teacher_embeddings = own + 0.7 * spread[1]

    def _head(self, dim: int, classes: int) -> SoftmaxHead | ShardedHead:
        if self.setting.variant == "softmax":
            return SoftmaxHead(dim, classes)
        if self.setting.variant == "sharded":
            return ShardedHead(dim, classes, precision=self.setting.precision)  # type: ignore[arg-type]
        return PartialFCHead(dim, classes, sample_rate=0.1, precision=self.setting.precision)  # type: ignore[arg-type]

    def __call__(self) -> float:
        self.embeddings.grad = self.head.weight.grad = None
        total = self.total()
        torch.autograd.backward(total)
        return total.item()

    def total(self) -> Tensor:
        """The loss of one step."""
        if isinstance(self.head, ShardedHead):
            teacher = TeacherClasses(self.teacher_embeddings, self.teacher_weight, self.margin, self.loss)
            one, other = fused_losses(self.head, self.margin, self.embeddings, self.labels, 0, teacher)
            assert other is not None
            return one.total + other.total
        logits = self.margin(self.head.cosine(self.embeddings), self.labels)
        with torch.no_grad():
            teacher_logits = self.margin(self.teacher_head.cosine(self.teacher_embeddings), self.labels)
        distilled: Tensor = self.loss(logits, teacher_logits, self.labels).total
        return F.cross_entropy(logits, self.labels) + distilled

    def gradient_bytes(self) -> int:
        """Of the gradients that the last call returned."""
        grad = self.head.weight.grad
        assert grad is not None
        dense = grad._values() if grad.is_sparse else grad
        return dense.numel() * dense.element_size()

    def product_seconds(self) -> float:
        """The matrix products alone, once each way: scores of both networks, and the student's two gradients."""
        columns = 4096
        scores = torch.randn(self.setting.samples, columns, device=self.setting.device)
        unit = self.embeddings.detach()
        out = torch.empty(columns, self.setting.dim, device=self.setting.device)
        times = []
        for _ in range(self.setting.repeats + 1):
            start = now(self.setting.device)
            for _ in range(8):
                for _ in range(2):
                    torch.mm(unit, self.teacher_weight[:columns].T)
                torch.mm(scores.T, unit, out=out)
                torch.mm(scores, self.teacher_weight[:columns])
            times.append((now(self.setting.device) - start) / 8 / columns * self.setting.classes)
        return statistics.median(times[1:])


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def memory_of(function: Callable[[], object], device: str) -> tuple[int, int]:
    """The most that `function` had allocated at any time, and what of it is left: by torch's allocators alone."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before, torch.cuda.memory_allocated() - before
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    steps = list(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))
    return max(steps), steps[-1]


def measure(setting: Setting) -> Result:
    """Run one setting in this process."""
    torch.set_num_threads(setting.threads)
    step = Step(setting)
    step()  # libraries load, pools fill
    gradient = step.gradient_bytes()
    step.embeddings.grad = step.head.weight.grad = None
    total: list[Tensor] = []
    forward, kept = memory_of(lambda: total.append(step.total()), setting.device)
    backward, _ = memory_of(lambda: torch.autograd.backward(total[0]), setting.device)
    extra = max(forward, kept + backward - gradient)
    times = []
    for _ in range(setting.repeats):
        start = now(setting.device)
        step()
        times.append(now(setting.device) - start)
    share = 0.1 if setting.variant == "partial_fc" else 1.0
    return Result(
        statistics.median(times),
        step.product_seconds() * share,
        extra / MEBIBYTE,
        total[0].item(),
    )


def compare(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every variant and print the table."""
    print(f"{'C':>9}  {'head':10} {'grouping':15} {'seconds':>8} {'products':>8} {'ratio':>6} {'extra MiB':>9} "
          f"{'of (N, C)':>9}")  # fmt: skip
    rows: list[dict[str, object]] = []
    for classes in arguments.classes:
        for grouping in arguments.groupings:
            for variant in arguments.variants:
                setting = Setting(variant, grouping, arguments.samples, arguments.dim, classes, arguments.repeats,
                                  arguments.device, arguments.threads, arguments.precision)  # fmt: skip
                if needed_gib(setting) > arguments.memory_gib:
                    print(f"{classes:>9}  {variant:10} {grouping:15} left out: needs {needed_gib(setting):.0f} GiB")
                    continue
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(measure, (setting,))
                matrix = arguments.samples * classes * 4 / MEBIBYTE
                rows.append({**asdict(setting), **asdict(result), "torch": torch.__version__})
                print(f"{classes:>9}  {variant:10} {grouping:15} {result.seconds:8.3f} {result.product_seconds:8.3f} "
                      f"{result.seconds / result.product_seconds:6.2f} {result.extra_mib:9.1f} "
                      f"{result.extra_mib / matrix:9.3f}", flush=True)  # fmt: skip
    return rows


def plot(rows: list[dict[str, object]], path: Path) -> None:
    """Time, and extra memory, against the number of classes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for name, axis in zip(("seconds", "extra_mib"), axes, strict=True):
        for variant in VARIANTS:
            for grouping, style in zip(GROUPINGS, ("-o", "--s"), strict=True):
                own = [row for row in rows if row["variant"] == variant and row["grouping"] == grouping]
                if own:
                    axis.plot([row["classes"] for row in own], [row[name] for row in own], style,
                              label=f"{variant}, {grouping}")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="classes", ylabel=name.replace("_mib", " memory, MiB"))
        axis.grid(visible=True, which="both", alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, nargs="+", default=[85_742, 360_232, 1_000_000, 2_000_000])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--groupings", nargs="+", choices=tuple(GROUPINGS), default=tuple(GROUPINGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--memory-gib", type=float, default=14.0, help="leave out what needs more")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--plot", type=Path, help="also draw a plot here")
    arguments = parser.parse_args()
    rows = compare(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        plot(rows, arguments.plot)


if __name__ == "__main__":
    main()
