"""Images a second of training steps: undistilled, with a live and with a cached teacher, beside a plain loop.

    python benchmarks/train_step.py [--students mobilefacenet mobilefacenet_classic] [--teachers iresnet50 iresnet100]
        [--variants plain alone live cached] [--batch 64] [--classes 85742] [--precision fp32] [--set compile ...]
        [--warmup 3] [--repeats 5] [--device cpu] [--threads 1] [--json OUT]
    torchrun --nproc-per-node 2 benchmarks/train_step.py --variants alone cached       # over ranks, `--batch` in all

plain   a loop as the public trainers have it, written anew: fp32, the teacher's network on every batch, both full
        softmax heads with ArcFace, the authors' formulation of the loss (see gkd_loss.py), torch's SGD, clipping, and
        the loss read from the device at every step
alone   the trainer of this project (augmentation, forward, backward, clipping, the finite check, optimiser) on the
        student alone
live    the same with Grouped KD, the teacher's network in bf16 on every batch
cached  the same, the teacher's embeddings read from a cache on disk, at random places

Batches lie in memory, so waiting for data is not measured. All variants of a pair take a step in every round; figures
are medians over the rounds and `x plain` the median of the ratios within a round, so that other work on the machine
falls on all. On one thread of a CPU they are seconds of the processor, which other work changes less. `floor` is the
time that the multiplications and the memory traffic of a step take at the machine's own rates, measured first: a large
matrix product, for networks a convolution of 3 x 3 where that is faster, in the precision of each part, and a copy; the
head's traffic counts seven passes over class weights, gradient and momentum, and six over the scores. Before anything
is timed, the loss of `plain` and that of `live` in fp32 are compared on equal weights and images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from gkd_loss import author_loss
from teacher_step import NUM_CACHED, kept_embeddings
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.core import distributed
from gkd.core.freed_memory import keep_freed_memory
from gkd.data.augment import Augment, Flip
from gkd.data.loader import RawBatch
from gkd.distill import GroupedKD, TopK
from gkd.heads import ArcFace, SoftmaxHead
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec, count_macs, create_backbone
from gkd.models.prelu import PReLU
from gkd.train.metrics import RunLog
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.optim import build_sgd
from gkd.train.precision import LossScale
from gkd.train.rank_watch import RankWatch
from gkd.train.recompute import recompute_blocks
from gkd.train.trainer import LoopSettings, Trainer

DIM, CLIP, LR = 512, 5.0, 0.01
SETTINGS = ("compile", "recompute", "contiguous")
VARIANTS = ("plain", "alone", "live", "cached")
SGD = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}


def parts(student: str, teacher: str, classes: int) -> tuple[nn.Module, SoftmaxHead, nn.Module, SoftmaxHead]:
    """Student, head, teacher, its head: the same weights at every call."""
    torch.manual_seed(0)
    networks = [create_backbone(name, embedding_dim=DIM) for name in (student, teacher)]
    _fit_statistics(networks[1])
    return networks[0], SoftmaxHead(DIM, classes), networks[1], SoftmaxHead(DIM, classes)


@torch.no_grad()
def _fit_statistics(network: nn.Module) -> None:
    """Give the batch norms statistics that fit the weights; with those of a new network numbers grow beyond fp32."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()(torch.randn(4, 3, 112, 112))
    network.eval()


class PlainLoop:
    """The public way: nothing is shared, saved or overlapped."""

    def __init__(self, student: str, teacher: str, arguments: argparse.Namespace) -> None:
        device = torch.device(arguments.device)
        self.student, head, self.teacher, teacher_head = (
            part.to(device) for part in parts(student, teacher, arguments.classes)
        )
        self.weight = nn.Parameter(head.weight.detach().clone())
        self.teacher_weight = teacher_head.weight.detach().clone()
        for module in self.student.modules():
            if isinstance(module, PReLU):
                module.__class__ = nn.PReLU  # torch's own, as public networks have
        self.student.train()
        self.teacher.eval()
        self.parameters = [*(p for p in self.student.parameters() if p.requires_grad), self.weight]
        self.optimizer = torch.optim.SGD(self.parameters, lr=LR, **SGD)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        pixels = images.float().sub(127.5).div(127.5).contiguous()
        with torch.no_grad():
            teacher_logits = self._margin(self._cosine(self.teacher(pixels), self.teacher_weight), labels)
        logits = self._margin(self._cosine(self.student(pixels), self.weight), labels)
        return F.cross_entropy(logits, labels) + author_loss(logits, teacher_logits, labels, "top_k")

    @staticmethod
    def _cosine(embeddings: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1, 1)

    @staticmethod
    def _margin(cosine: Tensor, labels: Tensor) -> Tensor:
        one_hot = torch.zeros_like(cosine).scatter_(1, labels[:, None], 1.0)
        return torch.cos(torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7)) + 0.5 * one_hot) * 64.0

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        loss = self.loss(images, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, CLIP)
        self.optimizer.step()
        loss.item()


class OwnLoop:
    """This project's trainer, fed from memory."""

    def __init__(
        self, variant: str, student: str, teacher: str, arguments: argparse.Namespace, folder: Path, precision: str = ""
    ) -> None:
        self.device = torch.device(arguments.device)
        self.precision = precision or arguments.precision
        objective = self._objective(variant, *parts(student, teacher, arguments.classes), folder)
        objective.to(self.device)
        if "contiguous" in arguments.settings:
            objective.memory_format = torch.contiguous_format
        else:
            objective.backbone.to(memory_format=torch.channels_last)
        if "recompute" in arguments.settings:
            recompute_blocks(objective.backbone)
        if "compile" in arguments.settings:
            objective.compile_backbone()
        self.objective = objective
        self.trainer = Trainer(
            objective,
            build_sgd(objective, lr=LR, **SGD),
            lambda step: LR,
            LoopSettings(10**9, 10**9, arguments.batch, precision=self.precision, clip_norm=CLIP),
            device=self.device,
            augment=Augment([Flip()], 0),
            run_log=RunLog(folder / variant, 0),
            evaluate=lambda: ({}, None),
            save=lambda step, score: None,
            stop=SimpleNamespace(signal_number=0),
            guard=NonFiniteGuard(folder),
            watch=RankWatch(),
            loss_scale=LossScale() if self.precision == "fp16" else None,
        )
        self.trainer.model.train()
        self.num_steps = 0

    def _objective(
        self, variant: str, student: nn.Module, head: SoftmaxHead, teacher: nn.Module, teacher_head: SoftmaxHead,
        folder: Path,
    ) -> ClassificationObjective:  # fmt: skip
        parts = (student, head, ArcFace(), InputSpec())
        if variant == "alone":
            return ClassificationObjective(*parts)
        stored = kept_embeddings(folder / "cache") if variant == "cached" else None
        network: nn.Module = nn.Identity() if stored else teacher.to(self.device, memory_format=torch.channels_last)
        precision: Any = "fp32" if self.precision == "check" else "bf16"
        frozen = Teacher(network, teacher_head.to(self.device), InputSpec(), precision=precision, stored=stored)
        term = DistillTerm("gkd", GroupedKD(grouping=TopK()), warmup_epochs=0)
        return DistillationObjective(*parts, frozen, ArcFace(), [term], 10**9)

    def step(self, images: Tensor, labels: Tensor) -> None:
        ids = torch.randint(0, NUM_CACHED, labels.shape)
        raw = RawBatch(images.permute(0, 2, 3, 1), labels, ids, self.num_steps, 0, 0, ())
        self.trainer._step(self.num_steps, itertools.repeat(raw))
        self.num_steps += 1


def batches(arguments: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of random images, (N, 3, H, W) in the loader's order of memory, and their labels."""
    generator = torch.Generator().manual_seed(distributed.rank())
    count = arguments.batch // distributed.world_size()
    while True:
        images = torch.randint(0, 256, (count, 112, 112, 3), dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, arguments.classes, (count,), generator=generator)
        yield images.permute(0, 3, 1, 2).to(arguments.device), labels.to(arguments.device)


def now(arguments: argparse.Namespace) -> float:
    if arguments.device == "cuda":
        torch.cuda.synchronize()
    is_alone = arguments.device == "cpu" and arguments.threads == 1 and distributed.world_size() == 1
    return time.process_time() if is_alone else time.perf_counter()


def check_losses(student: str, teacher: str, arguments: argparse.Namespace, folder: Path) -> float:
    """The relative difference of the two losses in fp32, on 4 images."""
    plain = PlainLoop(student, teacher, arguments)
    own = OwnLoop("live", student, teacher, arguments, folder, precision="fp32")
    own.objective.__dict__["teacher"].precision = "fp32"
    images, labels = (each[:4] for each in next(batches(arguments)))
    with torch.no_grad():
        expected = plain.loss(images, labels)
        raw = RawBatch(images.permute(0, 2, 3, 1), labels, labels, 0, 0, 0, ())
        found = own.objective(_unchanged(raw)).total
    return float((found - expected).abs() / expected.abs())


def _unchanged(raw: RawBatch) -> Any:
    from gkd.train.trainer import prepare_batch

    return prepare_batch(raw, Augment([], 0))


def rates(arguments: argparse.Namespace) -> dict[str, float]:
    """Floating-point operations a second of a large product and of a convolution, and bytes a second of a copy."""
    found = {}
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name in sorted({"fp32", "bf16", arguments.precision}):
        dtype = dtypes[name]
        size = 8192 if arguments.device == "cuda" else 2048
        left = torch.randn(size, size, device=arguments.device).to(dtype)
        found[name] = 2 * size**3 / _fastest(lambda left=left: left @ left, arguments)
        maps = torch.randn(64, 256, 14, 14, device=arguments.device).to(dtype, memory_format=torch.channels_last)
        convolution = nn.Conv2d(256, 256, 3, padding=1, device=arguments.device).to(dtype)
        with torch.no_grad():
            seconds = _fastest(lambda maps=maps, convolution=convolution: convolution(maps), arguments)
        found[f"convolution {name}"] = 2 * maps.numel() * 256 * 9 / seconds
    source = torch.empty(2**27, device=arguments.device).zero_()
    target = torch.empty_like(source).zero_()
    return found | {"bytes": 2 * source.numel() * 4 / _fastest(lambda: target.copy_(source), arguments)}


def _fastest(function: Any, arguments: argparse.Namespace) -> float:
    seconds = []
    for _ in range(4):
        start = now(arguments)
        function()
        seconds.append(now(arguments) - start)
    return min(seconds[1:])


def floor_seconds(
    variant: str, student: nn.Module, teacher: nn.Module, arguments: argparse.Namespace, rate: dict[str, float]
) -> tuple[float, str]:
    """The least seconds of a step, and which of its parts takes most of them."""
    count, classes = arguments.batch, arguments.classes
    own = "fp32" if variant == "plain" else arguments.precision

    def best(precision: str) -> float:
        return max(rate[precision], rate[f"convolution {precision}"])

    seconds = {"student": 3 * 2 * count_macs(student) * count / best(own)}
    if variant in ("plain", "live"):
        seconds["teacher"] = 2 * count_macs(teacher) * count / best("fp32" if variant == "plain" else "bf16")
    products = 3 if variant == "alone" else 4
    flops = products * 2 * count * classes * DIM / rate["fp32"]
    traffic = (7 * classes * DIM + 6 * count * classes) * 4 / rate["bytes"]
    seconds["head"] = max(flops, traffic)
    return sum(seconds.values()), max(seconds, key=lambda part: seconds[part])


def compare(student: str, teacher: str, arguments: argparse.Namespace, rate: dict[str, float]) -> list[dict[str, Any]]:
    """Measure one pair and print its rows."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as own:
        folder = distributed.broadcast_object(own)
        loops: dict[str, Any] = {
            name: PlainLoop(student, teacher, arguments)
            if name == "plain"
            else OwnLoop(name, student, teacher, arguments, Path(folder))
            for name in arguments.variants
        }
        seen: dict[str, list[float]] = defaultdict(list)
        incoming = batches(arguments)
        for count in range(arguments.warmup + arguments.repeats):
            images, labels = next(incoming)
            for name, loop in loops.items():
                start = now(arguments)
                loop.step(images, labels)
                if count >= arguments.warmup:  # until then pools and caches fill
                    seen[name].append(now(arguments) - start)
        distributed.barrier()
    first = arguments.variants[0]
    networks = parts(student, teacher, 1)
    for name, seconds in seen.items():
        least, bound = floor_seconds(name, networks[0], networks[2], arguments, rate)
        ratio = statistics.median(a / b for a, b in zip(seen[first], seconds, strict=True))
        median = statistics.median(seconds)
        row = {
            "student": student, "teacher": teacher, "variant": name, "seconds": median, "min": min(seconds),
            "max": max(seconds), "images_per_second": arguments.batch / median, f"times_{first}": ratio,
            "floor_share": least / median / distributed.world_size(), "most": bound,
        }  # fmt: skip
        rows.append(row)
        if distributed.rank() == 0:
            print(f"{student:22} {teacher:10} {name:8} {median:8.3f} {row['images_per_second']:9.1f} {ratio:8.2f} "
                  f"{100 * row['floor_share']:7.0f}  {bound}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--students", nargs="+", default=["mobilefacenet", "mobilefacenet_classic"])
    add("--teachers", nargs="+", default=["iresnet50", "iresnet100"])
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--batch", type=int, default=64, help="images of a step, over all ranks")
    add("--classes", type=int, default=85_742)
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the student in our own loops")
    add("--set", dest="settings", nargs="*", choices=SETTINGS, default=[], help="further settings of our own loops")
    add("--warmup", type=int, default=3, help="rounds that are not measured")
    add("--repeats", type=int, default=5)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1)
    add("--folder", type=Path, help="where the cache of 400 MB is made; the system's temporary folder by default")
    add(
        "--keep-memory", action="store_true", help="keep freed memory as tools/train.py does on a CPU; for all variants"
    )
    add("--no-check", action="store_true", help="do not compare the losses first")
    add("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.classes <= TopK().k:
        parser.error(f"--classes must be above the {TopK().k} of the grouping top_k, got {arguments.classes}")
    torch.set_num_threads(arguments.threads)
    if arguments.keep_memory:
        keep_freed_memory()
    with distributed.process_group():
        if distributed.world_size() > 1 and "plain" in arguments.variants:
            parser.error("plain runs on one process; leave it out of --variants")
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    rate = rates(arguments)
    is_first = distributed.rank() == 0
    if is_first:
        print("  ".join(f"{name} {1e-9 * value:,.0f} G/s" for name, value in rate.items()))
    if is_first and not arguments.no_check and distributed.world_size() == 1:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            gap = check_losses(arguments.students[0], arguments.teachers[0], arguments, Path(folder))
        print(f"loss of plain and live in fp32, relative difference: {gap:.1e}", flush=True)
    if is_first:
        print(f"{'student':22} {'teacher':10} {'variant':8} {'step s':>8} {'images/s':>9} "
              f"{'x ' + arguments.variants[0]:>8} {'floor %':>7}  most of it")  # fmt: skip
    rows = [
        row
        for student in arguments.students
        for teacher in arguments.teachers
        for row in compare(student, teacher, arguments, rate)
    ]
    if arguments.json and is_first:
        settings = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
        text = json.dumps({"settings": settings, "rates": rate, "rows": rows}, indent=1)
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
