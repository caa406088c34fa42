"""What `tools/train.py --dry-run` prints: the run as it would be, and what is in its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from gkd import build
from gkd.core.errors import GkdError
from gkd.data import PairSet, decode_image
from gkd.models import Backbone
from gkd.models.cost import count_activations, count_macs, num_parameters
from gkd.schema import TrainRun

BYTES_PER_GIB = 2**30


def format_plan(config: TrainRun) -> tuple[str, bool]:
    """The plan as text, and whether the run could start: every path is there and every combination fits."""
    problems: list[str] = []
    lines = [f"run folder      {config.run.folder}"]
    dataset = _attempt(problems, lambda: build.build_dataset(config))
    lines += _backbone_lines(config)
    if dataset is not None:
        lines += _attempt(problems, lambda: _data_lines(config, dataset)) or []
        _attempt(problems, lambda: _decode_first(config, dataset))
    else:
        lines.append(
            f"training data   {config.data.train.arguments()['path']}: not readable, so classes and steps are unknown"
        )
    lines += _set_lines(config, problems)
    lines += _teacher_lines(config, dataset, problems)
    lines += ["", "in the way:", *(f"  {problem}" for problem in problems)] if problems else ["", "ready to train"]
    return "\n".join(lines) + "\n", not problems


def _attempt(problems: list[str], function: Any) -> Any:
    try:
        return function()
    except GkdError as error:
        problems.append(str(error))
        return None


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training step holds on one process, from shapes alone."""

    weights: int
    activations: int
    logits: int

    @property
    def total_gib(self) -> float:
        """All of it in GiB."""
        return (self.weights + self.activations + self.logits) / BYTES_PER_GIB


def estimate_memory(config: TrainRun, backbone: Backbone, num_classes: int) -> MemoryEstimate:
    """Weights with gradient and momentum, the outputs of every layer, and six (N, C) matrices of a distilled step.

    An estimate: the allocator, workspaces and the teacher's passing activations come on top.
    """
    images = -(-config.train.batch_size // config.train.micro_batches)
    trained = num_parameters(backbone) + num_classes * backbone.embedding_dim
    bytes_per_activation = 2 if config.train.precision == "bf16" else 4
    num_matrices = 6 if config.teacher else 3
    return MemoryEstimate(
        weights=trained * 4 * 3,
        activations=images * count_activations(backbone) * bytes_per_activation,
        logits=images * num_classes * 4 * num_matrices,
    )


def _meta_backbone(config: TrainRun) -> Backbone:
    with torch.device("meta"):
        return build.build_backbone(config)


def _backbone_lines(config: TrainRun) -> list[str]:
    backbone = _meta_backbone(config)
    return [
        f"backbone        {config.backbone.name}, {num_parameters(backbone) / 1e6:.2f} M parameters, "
        f"{count_macs(backbone) / 1e6:.0f} M multiply-accumulates an image"
    ]


def _data_lines(config: TrainRun, dataset: Any) -> list[str]:
    settings = build.build_settings(config, len(dataset))
    build.build_schedule(config, len(dataset))
    memory = estimate_memory(config, _meta_backbone(config), dataset.num_identities)
    return [
        f"training data   {config.data.train.arguments()['path']}: {len(dataset)} images of "
        f"{dataset.num_identities} classes",
        f"steps           {settings.total_steps} of {settings.batch_size} images, {settings.steps_per_epoch} an epoch, "
        f"{config.train.epochs} epochs",
        f"memory          about {memory.total_gib:.2f} GiB for one process: weights, gradients and momentum "
        f"{memory.weights / BYTES_PER_GIB:.2f}, activations {memory.activations / BYTES_PER_GIB:.2f}, logits "
        f"{memory.logits / BYTES_PER_GIB:.2f}",
    ]


def _decode_first(config: TrainRun, dataset: Any) -> None:
    """Refuse images of another size than the network takes, as far as the first one shows."""
    decode_image(dataset[0][0], _meta_backbone(config).input_size, dataset.describe(0))


def _set_lines(config: TrainRun, problems: list[str]) -> list[str]:
    lines = []
    for path in config.evaluation.sets:
        pair_set = _attempt(problems, lambda path=path: PairSet.load(path))
        if pair_set is not None:
            lines.append(f"evaluation      {path}: {len(pair_set.is_same)} pairs")
    return lines


def _teacher_lines(config: TrainRun, dataset: Any, problems: list[str]) -> list[str]:
    if config.teacher is None:
        return []
    check_pairs = config.teacher.check_pairs
    _attempt(problems, lambda: PairSet.load(check_pairs))
    if dataset is None:
        return [f"teacher         {config.teacher.run}: checked once the training data are there"]
    parts = _attempt(problems, lambda: build.build_teacher(config, dataset))
    if parts is None:
        return []
    backbone = parts.teacher.backbone
    return [f"teacher         {config.teacher.run}: {num_parameters(backbone) / 1e6:.2f} M parameters, frozen"]
