"""What a teacher adds to a training step: none, cached embeddings, or a live network; and where the time goes.

    python benchmarks/teacher_step.py [--students mobilefacenet mobilefacenet_classic] [--teacher iresnet100]
                                      [--batch 64] [--classes 85742] [--grouping top_k] [--precision fp32]
                                      [--variants alone cached live] [--repeats 5] [--device cpu] [--threads 1]
                                      [--json OUT]

A step is what the trainer does with a batch that lies on the device: forward, backward, clipping, optimiser:
  alone     the undistilled student: backbone, ArcFace head, cross entropy
  cached    with Grouped KD against a teacher whose embeddings are read from a cache on disk, at random places
  live      with Grouped KD against the same teacher, whose network (in bf16) runs on every batch
All run in one process, in turn, a step of each in every round; the figures are medians over the rounds, and `ratio` is
the median of the ratios to `alone` in the same round. `teacher` is the lookup or the network; `student` the student's
forward pass through its backbone; `loss` what else the forward pass does (heads, cross entropy, Grouped KD); `backward`
and `update` (clipping, optimiser) are the rest. On CUDA the parts are left out: to time them would end what overlaps.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.core import distributed
from gkd.core.types import Batch
from gkd.distill import CumulativeMass, GroupedKD, TopK
from gkd.heads import ArcFace, SoftmaxHead
from gkd.inference.embedding_files import Origin
from gkd.inference.embedding_store import EmbeddingStore
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec, create_backbone
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.optim import build_sgd, clip_gradients

GROUPINGS = {"top_k": TopK, "cumulative_mass": CumulativeMass}
PARTS = ("teacher", "student", "loss", "backward", "update")
DIM = 512
NUM_CACHED = 200_000


class Clock:
    """Seconds by part of the step that is being measured."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            yield
            return
        start = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - start


def timed(clock: Clock, name: str, module: nn.Module) -> nn.Module:
    """`module`, whose forward passes count as a part."""
    forward = module.forward

    def timed_forward(*arguments: Any) -> Any:
        with clock.part(name):
            return forward(*arguments)

    module.forward = timed_forward  # type: ignore[method-assign]
    return module


def kept_embeddings(folder: Path) -> EmbeddingStore:
    """A full cache of random unit vectors, which the first rank makes."""
    store = EmbeddingStore(folder, Origin("data", "network", "input", NUM_CACHED, DIM))
    if distributed.rank() == 0:
        _fill(store)
    distributed.barrier()
    return store


def _fill(store: EmbeddingStore) -> None:
    rows = torch.randn(1000, 2, DIM)
    content = (rows / rows.norm(dim=2, keepdim=True)).half().numpy().tobytes()
    with (store.folder / store.origin.embeddings_name).open("wb") as file:
        for _ in range(NUM_CACHED // 1000):
            file.write(content)
    (store.folder / "done.u8").write_bytes(b"\1" * store.origin.num_blocks)


class Variant:
    """A student with its optimiser, and a teacher or none."""

    def __init__(self, name: str, student: str, arguments: argparse.Namespace, clock: Clock, folder: Path) -> None:
        self.arguments, self.clock, self.name = arguments, clock, name
        device = torch.device(arguments.device)
        torch.manual_seed(0)
        backbone = timed(clock, "student", create_backbone(student))
        head = SoftmaxHead(DIM, arguments.classes)
        margin, spec = ArcFace(), InputSpec()
        if name == "alone":
            self.objective: ClassificationObjective = ClassificationObjective(backbone, head, margin, spec)
        else:
            term = DistillTerm("gkd", GroupedKD(grouping=GROUPINGS[arguments.grouping]()), warmup_epochs=0)
            teacher = self._teacher(folder, spec).to(device, memory_format=torch.channels_last)
            self.objective = DistillationObjective(backbone, head, margin, spec, teacher, ArcFace(), [term], 1)
        self.objective.to(device).train()
        backbone.to(memory_format=torch.channels_last)
        self.optimizer = build_sgd(self.objective, lr=0.01, momentum=0.9, weight_decay=5e-4)
        self.parameters = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]

    def _teacher(self, folder: Path, spec: InputSpec) -> Teacher:
        stored = kept_embeddings(folder) if self.name == "cached" else None
        network = nn.Identity() if stored else create_backbone(self.arguments.teacher)
        return Teacher(network, SoftmaxHead(DIM, self.arguments.classes), spec, precision="bf16", stored=stored)

    def step(self, batch: Batch) -> dict[str, float]:
        """One step; its seconds by part."""
        self.clock.seconds.clear()
        start = self.clock.now()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.look_ahead([batch])
        with self.clock.part("forward"):
            is_bf16 = self.arguments.precision == "bf16"
            with torch.autocast(self.arguments.device, dtype=torch.bfloat16, enabled=is_bf16):
                losses = self.objective(batch)
        with self.clock.part("backward"):
            losses.total.backward()
        with self.clock.part("update"):
            clip_gradients(self.parameters, 5.0, [])
            self.optimizer.step()
        step = self.clock.now() - start
        seconds = dict(self.clock.seconds)
        if seconds:
            seconds["loss"] = seconds.pop("forward") - seconds["student"]
        teacher_seconds = self.objective.take_teacher_seconds()
        return seconds | {"step": step, "teacher": teacher_seconds or 0.0}


def random_batch(arguments: argparse.Namespace, generator: torch.Generator) -> Batch:
    num_images = arguments.batch
    images = torch.randint(0, 256, (num_images, 112, 112, 3), dtype=torch.uint8, generator=generator)
    return Batch(
        images.permute(0, 3, 1, 2).to(arguments.device),
        torch.randint(0, arguments.classes, (num_images,), generator=generator).to(arguments.device),
        torch.randint(0, NUM_CACHED, (num_images,), generator=generator).to(arguments.device),
        (torch.rand(num_images, generator=generator) < 0.5).to(arguments.device),
    )


def compare(student: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all variants of one student, in turn, and print their rows."""
    clock = Clock(torch.device(arguments.device))
    generator = torch.Generator().manual_seed(0)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        variants = [Variant(name, student, arguments, clock, Path(folder)) for name in arguments.variants]
        seen: dict[str, list[dict[str, float]]] = defaultdict(list)
        for count in range(arguments.repeats + 1):
            batch = random_batch(arguments, generator)
            for variant in variants:
                seconds = variant.step(batch)
                if count:  # the first round fills pools and caches
                    seen[variant.name].append(seconds)
    alone = [seconds["step"] for seconds in seen[arguments.variants[0]]]
    for name, measured in seen.items():
        median = {part: statistics.median(each.get(part, 0.0) for each in measured) for part in ("step", *PARTS)}
        # Of the same round, so that what else the machine does falls on both.
        ratio = statistics.median(each["step"] / base for each, base in zip(measured, alone, strict=True))
        rows.append({"student": student, "variant": name, "ratio": ratio, **median})
        print(f"{student:22} {name:8} {median['step']:8.3f} {ratio:6.2f} "
              + " ".join(f"{median[part]:9.3f}" for part in PARTS)
              + f" {arguments.batch / median['step']:9.1f}", flush=True)  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--students", nargs="+", default=["mobilefacenet", "mobilefacenet_classic"])
    add("--teacher", default="iresnet100")
    add("--variants", nargs="+", choices=("alone", "cached", "live"), default=["alone", "cached", "live"])
    add("--batch", type=int, default=64)
    add("--classes", type=int, default=85_742)
    add("--grouping", choices=tuple(GROUPINGS), default="top_k")
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the student; the teacher's is bf16")
    add("--repeats", type=int, default=5)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1)
    add("--folder", type=Path, help="where the cache of 400 MB is made; the system's temporary folder by default")
    add("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'student':22} {'variant':8} {'step s':>8} {'ratio':>6} " + " ".join(f"{part:>9}" for part in PARTS)
          + f" {'images/s':>9}")  # fmt: skip
    rows = [row for student in arguments.students for row in compare(student, arguments)]
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
