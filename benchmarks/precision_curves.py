"""What the fast ways to compute do to a loss curve, beside what another seed does to it.

    python benchmarks/precision_curves.py [--variants nudged bf16 fp16 channels_last compile checkpoint_activations]
                                          [--seeds 0 1 2 3 4] [--steps 200] [--device cpu] [--threads 1] [--json OUT]

A small MobileFaceNet learns drawn faces with ArcFace, in the trainer's own steps (autocast, loss scale, clipping, fused
SGD). The first run is plain fp32 with the first seed; each variant changes one thing of it, and each further seed all
random numbers: first weights, order of the images. `nudged` is plain too, with first weights that differ in their last
bit: training lets any difference grow, so this is what one without a meaning comes to. `max` and `mean` are of the
absolute difference of the curves, each a moving mean over 20 steps. The last lines are the spread of the seeds: the
smallest, median and largest of their pairs. A variant is harmless where it is like `nudged`, and below the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from gkd.core.types import Batch
from gkd.data.synthetic import draw_face
from gkd.heads import ArcFace, SoftmaxHead
from gkd.models import InputSpec, create_backbone
from gkd.train.objective import ClassificationObjective
from gkd.train.optim import build_sgd, clip_gradients
from gkd.train.precision import LossScale, Precision, autocast
from gkd.train.recompute import recompute_blocks

VARIANTS = ("nudged", "bf16", "fp16", "channels_last", "compile", "checkpoint_activations")
SMOOTHING = 20
SIZE, DIM = 64, 128
CLIP_NORM = 5.0


def draw(num_identities: int, images_per_identity: int) -> tuple[Tensor, Tensor]:
    """Images (N, H, W, 3) and labels (N,)."""
    keys = [(person, image) for person in range(num_identities) for image in range(images_per_identity)]
    faces = np.stack([draw_face(0, person, image, SIZE) for person, image in keys])
    return torch.from_numpy(faces), torch.tensor([person for person, _ in keys])


def objective_of(variant: str, seed: int, num_identities: int, device: torch.device) -> ClassificationObjective:
    torch.manual_seed(seed)
    size = (SIZE, SIZE)
    backbone = create_backbone("mobilefacenet_classic", embedding_dim=DIM, width_multiplier=0.25, input_size=size)
    head = SoftmaxHead(DIM, num_identities)
    objective = ClassificationObjective(backbone, head, ArcFace(scale=32.0), InputSpec()).to(device).train()
    order = torch.channels_last if variant == "channels_last" else torch.contiguous_format
    backbone.to(memory_format=order)
    objective.memory_format = order
    if variant == "nudged":
        with torch.no_grad():
            for parameter in objective.parameters():
                parameter.mul_(1 + torch.finfo(torch.float32).eps)
    if variant == "checkpoint_activations":
        recompute_blocks(backbone)
    if variant == "compile":
        objective.compile_backbone()
    return objective


def curve(variant: str, seed: int, images: Tensor, labels: Tensor, arguments: argparse.Namespace) -> list[float]:
    """The loss of every step; NaN where the loss scale was too large and nothing was updated."""
    device = torch.device(arguments.device)
    objective = objective_of(variant, seed, int(labels.max()) + 1, device)
    optimizer = build_sgd(objective, lr=arguments.lr)
    parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    precision: Precision = variant if variant in ("bf16", "fp16") else "fp32"  # type: ignore[assignment]
    loss_scale = LossScale() if precision == "fp16" else None
    losses: list[float] = []
    for _ in range(arguments.steps):
        rows = torch.randint(0, len(labels), (arguments.batch,), generator=generator)
        pixels = images[rows].permute(0, 3, 1, 2).to(device)
        batch = Batch(pixels, labels[rows].to(device), rows, torch.zeros(len(rows), dtype=torch.bool))
        scale = 1.0 if loss_scale is None else loss_scale.scale
        optimizer.zero_grad(set_to_none=True)
        with autocast(device, precision):
            total = objective(batch).total
        (total * scale).backward()
        norm = clip_gradients(parameters, CLIP_NORM, loss_scale=scale)
        is_applied = bool(torch.isfinite(norm))
        if loss_scale is not None:
            loss_scale.update(not is_applied)
        if is_applied:
            optimizer.step()
        losses.append(float(total.detach()))
    if objective.compiled is not None and not objective.compiled.is_compiled:
        raise SystemExit("the backbone was not compiled; see the warning")
    return losses


def smooth(losses: list[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.convolve(losses, np.full(SMOOTHING, 1 / SMOOTHING), mode="valid")


def spread(curves: list[list[float]]) -> dict[str, list[float]]:
    """The smallest, median and largest `max` and `mean` of all pairs of curves."""
    pairs = [np.abs(smooth(one) - smooth(other)) for one, other in combinations(curves, 2)]
    found = {"max": [float(pair.max()) for pair in pairs], "mean": [float(pair.mean()) for pair in pairs]}
    return {name: [min(each), statistics.median(each), max(each)] for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    add("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    add("--steps", type=int, default=200)
    add("--batch", type=int, default=32)
    add("--lr", type=float, default=0.01)
    add("--identities", type=int, default=40)
    add("--images", type=int, default=25, help="of each identity")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--threads", type=int, default=1)
    add("--json", type=Path, help="also write the rows and the curves here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images, labels = draw(arguments.identities, arguments.images)
    runs = [("fp32", seed) for seed in arguments.seeds] + [
        (variant, arguments.seeds[0]) for variant in arguments.variants
    ]
    rows: list[dict[str, Any]] = []
    print(f"{'variant':24} {'seed':>4} {'first':>8} {'last':>8} {'max':>8} {'mean':>8} {'seconds':>8}")
    for variant, seed in runs:
        start = time.perf_counter()
        losses = curve(variant, seed, images, labels, arguments)
        rows.append({"variant": variant, "seed": seed, "seconds": time.perf_counter() - start, "losses": losses})
        smoothed = smooth(losses)
        differences = np.abs(smoothed - smooth(rows[0]["losses"]))
        rows[-1] |= {"max": float(differences.max()), "mean": float(differences.mean())}
        print(
            f"{variant:24} {seed:4} {smoothed[0]:8.3f} {smoothed[-1]:8.3f} {rows[-1]['max']:8.4f} "
            f"{rows[-1]['mean']:8.4f} {rows[-1]['seconds']:8.0f}",
            flush=True,
        )
    of_seeds = spread([row["losses"] for row in rows if row["variant"] == "fp32"]) if len(arguments.seeds) > 1 else {}
    for name, values in of_seeds.items():
        print(f"pairs of seeds: {name} {values[0]:.4f} {values[1]:.4f} {values[2]:.4f}")
    if arguments.json:
        settings = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
        arguments.json.write_text(json.dumps({"settings": settings, "spread": of_seeds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
