"""Channels-last against contiguous: the student's forward and backward pass in both orders of memory.

    python benchmarks/memory_format.py [--backbones mobilefacenet iresnet50 ...] [--batch 32] [--precisions fp32 bf16]
                                       [--repeats 7] [--device cpu] [--threads 1] [--json OUT]

Weights and images are in the same order; the images begin as the loader gives them, (N, H, W, 3) in memory, so that the
contiguous order pays for its copy. Both run in one process, in turn; the figures are medians over the rounds, and
`ratio` is the median of contiguous / channels-last in the same round: above 1 channels-last is the faster. On a CPU the
seconds are those of the processor, which other work on the machine changes less than those of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.models import create_backbone

FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


def seconds(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def step(network: nn.Module, images: Tensor, memory_format: torch.memory_format, precision: str) -> None:
    """Forward and backward of the embeddings' mean square."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    with torch.autocast(images.device.type, dtype=dtype, enabled=precision != "fp32"):
        embeddings = network(images.contiguous(memory_format=memory_format))
    embeddings.square().mean().backward()
    network.zero_grad(set_to_none=True)


def compare(name: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One row: both orders of one backbone in one precision."""
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.batch, 112, 112, 3, generator=generator).permute(0, 3, 1, 2).to(device)
    networks = {}
    for order, memory_format in FORMATS.items():
        torch.manual_seed(0)
        networks[order] = create_backbone(name).to(device, memory_format=memory_format).train()
    seen: dict[str, list[float]] = {order: [] for order in FORMATS}
    for count in range(arguments.repeats + 1):
        for order, memory_format in FORMATS.items():
            start = seconds(device)
            step(networks[order], images, memory_format, precision)
            if count:  # the first round fills pools and caches
                seen[order].append(seconds(device) - start)
    pairs = zip(seen["contiguous"], seen["channels_last"], strict=True)
    medians = {order: statistics.median(found) for order, found in seen.items()}
    row = {"backbone": name, "precision": precision, **medians, "ratio": statistics.median(a / b for a, b in pairs)}
    print(
        f"{name:22} {precision:5} {row['channels_last']:12.3f} {row['contiguous']:12.3f} {row['ratio']:7.2f}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--backbones", nargs="+", default=["mobilefacenet", "mobilefacenet_classic", "iresnet18", "iresnet50"])
    add("--precisions", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32", "bf16"])
    add("--batch", type=int, default=32)
    add("--repeats", type=int, default=7)
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1)
    add("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{'backbone':22} {'':5} {'channels s':>12} {'contiguous s':>12} {'ratio':>7}")
    rows = [compare(name, precision, arguments) for name in arguments.backbones for precision in arguments.precisions]
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
        arguments.json.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
