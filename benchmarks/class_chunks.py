"""Time of each Triton kernel over a chunk of class scores, beside memory's own speed and beside PyTorch operations.

    python benchmarks/class_chunks.py [--shapes 128x131072 …] [--repeats 30] [--json OUT]

Run it on a CUDA machine; elsewhere it says so and exits with 2. The floor of a kernel is the bytes that it must move
divided by the rate at which this device copies a large tensor. The default chunks are larger than the device's cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.core import class_chunks, class_chunks_triton
from gkd.core.class_chunks import EXCLUDED, Gradient, GroupSums, Primary, RunningSum

SHAPES = ["128x131072", "1024x65536", "4096x32768", "1024x65537"]
INVERSE_TEMPERATURE = 0.25
COPIED_ENTRIES = 2**28
MICROSECONDS_PER_MILLISECOND = 1e3
WARM_UPS = 3


@dataclass(frozen=True)
class Row:
    """Medians over the repeats; of_floor is floor / triton, 1 at memory's speed."""

    kernel: str
    rows: int
    columns: int
    bytes_moved: int
    floor_microseconds: float
    triton_microseconds: float
    torch_microseconds: float
    of_floor: float


@dataclass(frozen=True)
class Chunk:
    """What the kernels work on."""

    student: Tensor
    teacher: Tensor
    classes: Tensor
    primary: Primary
    running: RunningSum
    sums: GroupSums
    gradient: Gradient
    log_normaliser: Tensor
    out: Tensor
    masses: Tensor


def chunk_of(rows: int, columns: int) -> Chunk:
    """Scores at scale 64 that are alike but not equal; an eighth of the classes is Primary."""
    generator = torch.Generator("cuda").manual_seed(0)
    teacher = torch.randn((rows, columns), generator=generator, device="cuda").mul_(0.06 * 64)
    student = torch.randn((rows, columns), generator=generator, device="cuda").mul_(0.02 * 64).add_(teacher)
    student[:, columns // 2] = teacher[:, columns // 2] = EXCLUDED
    value = student.topk(max(1, columns // 8), dim=1).values[:, -1:].contiguous()
    ones = torch.ones((4, rows), device="cuda")
    lse = student.double().logsumexp(dim=1)
    return Chunk(
        student=student,
        teacher=teacher,
        classes=torch.arange(columns, device="cuda"),
        primary=Primary(value, torch.full((rows, 1), columns // 2, device="cuda"), ranked_is_student=True),
        running=RunningSum.empty(rows, student),
        sums=GroupSums.empty(rows, student),
        gradient=Gradient(ones[0], lse.float(), ones, ones * 20),
        log_normaliser=lse,
        out=torch.empty_like(student),
        masses=torch.empty(columns, dtype=torch.float64, device="cuda"),
    )


def calls(module: ModuleType, chunk: Chunk) -> dict[str, Callable[[], None]]:
    """Each function of `module` with its arguments, by name."""
    both = chunk.student, chunk.teacher, chunk.primary, chunk.classes, INVERSE_TEMPERATURE
    alone = chunk.student, None, None, chunk.classes, INVERSE_TEMPERATURE
    cross_entropy = Gradient(chunk.gradient.class_weight, chunk.gradient.class_lse)
    mass = chunk.student, chunk.log_normaliser, INVERSE_TEMPERATURE, chunk.masses
    return {
        "add_to_sum": partial(module.add_to_sum, chunk.student, chunk.running, INVERSE_TEMPERATURE),
        "add_to_groups": partial(module.add_to_groups, *both, chunk.sums),
        "write_gradient": partial(module.write_gradient, *both, chunk.gradient, chunk.out),
        "write_gradient, no teacher": partial(module.write_gradient, *alone, cross_entropy, chunk.out),
        "mass_of_classes": partial(module.mass_of_classes, *mass),
    }


# How many fp32 matrices each must read or write; what else it touches is small.
MATRICES = {
    "add_to_sum": 1,
    "add_to_groups": 2,
    "write_gradient": 3,
    "write_gradient, no teacher": 2,
    "mass_of_classes": 1,
}


def microseconds(function: Callable[[], object], repeats: int) -> float:
    """The median of `repeats` calls on the device, launches included where it waits for them."""
    taken = []
    for _ in range(WARM_UPS + repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * MICROSECONDS_PER_MILLISECOND)
    return statistics.median(taken[WARM_UPS:])


def copied_bytes_per_microsecond(repeats: int) -> float:
    """Bytes read and written by a copy of a tensor of 1 GiB."""
    source = torch.zeros(COPIED_ENTRIES, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / microseconds(partial(target.copy_, source), repeats)


def measure(shape: str, rate: float, repeats: int) -> list[Row]:
    """The rows of one chunk, printed as they come."""
    rows, columns = (int(size) for size in shape.split("x"))
    chunk, measured = chunk_of(rows, columns), []
    plain = calls(class_chunks, chunk)
    for name, function in calls(class_chunks_triton, chunk).items():
        moved = MATRICES[name] * chunk.student.nbytes
        ours, theirs = microseconds(function, repeats), microseconds(plain[name], repeats)
        row = Row(name, rows, columns, moved, moved / rate, ours, theirs, moved / rate / ours)
        print(f"{name:27} {shape:>12} {row.floor_microseconds:9.1f} {ours:9.1f} {theirs:9.1f} {row.of_floor:9.2f}")
        measured.append(row)
    return measured


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="rows x columns of the chunks")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not class_chunks_triton.is_available(torch.device("cuda")):
        print("there is no CUDA device here, or no triton: nothing was measured; run this on a CUDA machine")
        return 2
    rate = copied_bytes_per_microsecond(arguments.repeats)
    print(f"{torch.cuda.get_device_name()}: copies {rate / 1e3:.0f} GB/s")
    print(f"{'kernel':27} {'chunk':>12} {'floor us':>9} {'triton us':>9} {'torch us':>9} {'of floor':>9}")
    rows = [row for shape in arguments.shapes for row in measure(shape, rate, arguments.repeats)]
    if arguments.json:
        content = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "copy_gigabytes_per_second": rate / 1e3,
            "repeats": arguments.repeats,
            "rows": [asdict(row) for row in rows],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
