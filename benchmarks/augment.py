"""Time of each augmentation per image, beside a plain copy and, for JPEG, beside an encoder and decoder.

    python benchmarks/augment.py [--images 128] [--size 112] [--repeats 7] [--device cpu] [--threads 1] [--json OUT]

Every image of the batch is changed (probability 1); a run pays the probability's share of it. "alone" is a batch of
one, where the draws and the calls weigh most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.data.augment import AUGMENTATIONS, Augment, Flip
from gkd.data.synthetic import draw_face

MICROSECONDS = 1e6
NUM_FACES = 16


@dataclass(frozen=True)
class Row:
    """Medians over the repeats."""

    name: str
    batch_microseconds_per_image: float
    alone_microseconds_per_image: float
    times_the_copy: float


def faces(num_images: int, size: int) -> Tensor:
    """Drawn faces (N, 3, H, W) in the memory format that the loader gives."""
    drawn = [draw_face(0, person, 0, size) for person in range(min(num_images, NUM_FACES))]
    repeated = [drawn[number % len(drawn)] for number in range(num_images)]
    return torch.from_numpy(np.stack(repeated)).permute(0, 3, 1, 2)


def seconds(function: Callable[[], object], repeats: int, device: str) -> float:
    """The median of `repeats` calls after one to warm up."""
    taken = []
    for _ in range(repeats + 1):
        started = now(device)
        function()
        taken.append(now(device) - started)
    return statistics.median(taken[1:])


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def through_bytes(images: Tensor) -> None:
    """JPEG as an encoder and a decoder have it, image by image."""
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
        cv2.imdecode(encoded, cv2.IMREAD_COLOR)


def functions() -> dict[str, Callable[[Tensor], object]]:
    """What is measured, by name."""
    lists = {"flip at 0.5": [Flip()], "all at default": [cls() for cls in AUGMENTATIONS.values()]}
    lists |= {name: [cls(probability=1.0)] for name, cls in AUGMENTATIONS.items()}
    applied = {name: apply(Augment(steps, 0)) for name, steps in lists.items()}
    return {"copy": torch.clone, **applied, "jpeg via OpenCV": through_bytes}


def apply(augment: Augment) -> Callable[[Tensor], object]:
    return lambda images: augment(images, torch.arange(len(images)), 0)


def measure(arguments: argparse.Namespace) -> list[Row]:
    """All rows, the table printed as they come."""
    images = faces(arguments.images, arguments.size).to(arguments.device)
    rows: list[Row] = []
    print(f"{'augmentation':16} {'us/image':>9} {'alone':>9} {'x copy':>8}")
    for name, function in functions().items():
        whole = seconds(partial(function, images), arguments.repeats, arguments.device) / len(images) * MICROSECONDS
        alone = seconds(partial(function, images[:1]), arguments.repeats, arguments.device) * MICROSECONDS
        rows.append(Row(name, whole, alone, whole / (rows[0].batch_microseconds_per_image if rows else whole)))
        print(f"{name:16} {whole:9.1f} {alone:9.1f} {rows[-1].times_the_copy:8.1f}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cv2.setNumThreads(arguments.threads)
    rows = measure(arguments)
    if arguments.json:
        settings = {key: getattr(arguments, key) for key in ("images", "size", "repeats", "device", "threads")}
        content = {**settings, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
