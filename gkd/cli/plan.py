"""What `tools/train.py --dry-run` prints: the run as it would be, and what is in its way."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gkd import build
from gkd.build_teacher import TeacherNetwork, check_teacher_files, kept_folder, kept_origin, require_same_size
from gkd.cli.memory import memory_lines, num_ranks
from gkd.core.class_shard import ClassShard
from gkd.core.config import to_plain
from gkd.core.errors import ConfigError, GkdError
from gkd.data import PairSet, decode_image
from gkd.data.sampling import Order
from gkd.inference.embedding_files import STORE_FILE, num_done, size_text, store_bytes
from gkd.models import Backbone, OnnxBackbone
from gkd.models.cost import count_macs, num_parameters
from gkd.models.onnx_cost import count_onnx
from gkd.schema import TrainRun
from gkd.train.checkpoint import VALUES_NAME, Checkpoints
from gkd.train.checkpoint_marker import read_json
from gkd.train.run_folder import choose_checkpoint, require_same_run
from gkd.train.state import check_values


def format_plan(config: TrainRun) -> tuple[str, bool]:
    """The plan as text, and whether the run could start: every path is there and every combination fits."""
    problems: list[str] = []
    lines = [f"run folder      {config.run.folder}"]
    _attempt(problems, lambda: require_writable("run.folder", config.run.folder))
    dataset = _attempt(problems, lambda: build.build_dataset(config))
    with torch.device("meta"):
        backbone = build.build_backbone(config)
    lines.append(
        f"backbone        {config.backbone.name}, {num_parameters(backbone) / 1e6:.2f} M parameters, "
        f"{count_macs(backbone) / 1e6:.0f} M multiply-accumulates an image"
    )
    if dataset is not None:
        order = _attempt(problems, lambda: build.build_order(config, dataset))
        if order is not None:
            lines += _attempt(problems, lambda: _data_lines(config, backbone, dataset, order)) or []
            lines += _attempt(problems, lambda: _resume_lines(config, dataset, order)) or []
        # As far as the first one shows, the images have the size that the network takes.
        _attempt(problems, lambda: decode_image(dataset[0][0], backbone.input_size, dataset.describe(0)))
    else:
        lines.append(f"training data   {_data_paths(config)}: not readable, so classes and steps are unknown")
    lines += _set_lines(config, problems)
    lines += _teacher_lines(config, backbone, dataset, problems)
    lines += [
        f"note            {text}"
        for text in (
            *build.warm_up_notes(config),
            *build.lane_notes(config),
            *build.head_notes(config),
        )
    ]
    lines += ["", "in the way:", *(f"  {problem}" for problem in problems)] if problems else ["", "ready to train"]
    return "\n".join(lines) + "\n", not problems


def _attempt(problems: list[str], function: Any) -> Any:
    try:
        return function()
    except GkdError as error:
        problems.append(str(error))
        return None


def _data_lines(config: TrainRun, backbone: Backbone, dataset: Any, order: Order) -> list[str]:
    build.build_augment(config)
    settings = build.build_settings(config, order.images_per_epoch)
    build.build_schedule(config, order.images_per_epoch)
    build.require_shardable(config)
    if config.head.name != "softmax":
        ClassShard.of_rank(dataset.num_identities, 0, num_ranks())
    return [
        f"training data   {_data_paths(config)}: {len(dataset)} images of {dataset.num_identities} classes",
        f"order           {order.describe()}",
        f"augmentation    {', '.join(part.name for part in config.data.augment) or 'none'}",
        f"steps           {settings.total_steps} of {settings.batch_size} images, {settings.steps_per_epoch} an epoch, "
        f"{config.train.epochs} epochs",
        *memory_lines(config, backbone, dataset.num_identities),
    ]


def _resume_lines(config: TrainRun, dataset: Any, order: Order) -> list[str]:
    """Where the run would go on, if there is something to go on from.

    Raises:
        CheckpointError: it is damaged, or of other data. ConfigError: of other settings.
    """
    resume, folder = config.train.resume, config.run.folder
    path = choose_checkpoint(resume, Checkpoints(folder / "checkpoints"), folder)
    if path is None:
        return []
    saved = read_json(path / VALUES_NAME)
    check_values(path, saved, build.build_settings(config, order.images_per_epoch).total_steps)
    now = {"config": to_plain(config), "fingerprint": dataset.fingerprint, "environment": {}}
    require_same_run(path, saved, now, is_explicit=resume not in ("auto", "never"))
    return [f"resume          from {path}, step {saved['step']}"]


def _data_paths(config: TrainRun) -> str:
    parts = (config.data.train, *(more.data for more in config.data.more))
    return ", ".join(str(part.arguments()["path"]) for part in parts)


def _set_lines(config: TrainRun, problems: list[str]) -> list[str]:
    lines = []
    for path in config.evaluation.sets:
        loaded = _attempt(problems, lambda path=path: build.build_pair_sets((path,)))
        for pair_set in (loaded or {}).values():
            lines.append(f"evaluation      {path}: {len(pair_set.is_same)} pairs")
    return lines


def _teacher_lines(config: TrainRun, student: Backbone, dataset: Any, problems: list[str]) -> list[str]:
    settings = config.teacher
    if settings is None:
        return []
    _attempt(problems, lambda: PairSet.load(settings.check_pairs))
    name = settings.run or settings.weights or (settings.backbone and settings.backbone.name)
    if dataset is None:
        return [f"teacher         {name}: checked once the training data are there"]
    network = _attempt(problems, lambda: check_teacher_files(config, dataset))
    if network is None:
        return []
    _attempt(problems, lambda: require_same_size(student, network.backbone))
    size = _num_parameters(network.backbone)
    text = "" if size is None else f"{size / 1e6:.2f} M parameters, "
    lines = [f"teacher         {network.source}: {text}frozen, {network.input_spec} ({network.input_reason})"]
    return lines + (_attempt(problems, lambda: _kept_lines(config, network, dataset)) or [])


def _num_parameters(backbone: Backbone) -> int | None:
    """Of the network, those of an ONNX file included; None where that cannot be counted."""
    if isinstance(backbone, OnnxBackbone):
        return count_onnx(backbone.path).num_parameters
    return num_parameters(backbone)


def _kept_lines(config: TrainRun, network: TeacherNetwork, dataset: Any) -> list[str]:
    """What is kept of the teacher, or will be."""
    assert config.teacher is not None
    folder, origin = kept_folder(config.teacher), kept_origin(config, network, dataset)
    if folder is None or origin is None:
        return []
    title, key = ("teacher cache ", "cache") if config.teacher.cache else ("class centres ", "centres")
    size = size_text(store_bytes(origin))
    if not (folder / STORE_FILE).exists():
        require_writable(f"teacher.{key}.folder", folder)
        return [f"{title}  {folder}: to be made from {len(dataset)} images, {size} of embeddings"]
    found = num_done(folder, origin)
    if found < len(dataset):
        return [f"{title}  {folder}: begun, {found} of {len(dataset)} images done, {size} in the end"]
    return [f"{title}  {folder}: there, {size} of embeddings of these images"]


def require_writable(key: str, folder: Path) -> None:
    """Refuse a folder that could not be made or written in, without making it.

    Raises:
        ConfigError: as above.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written in" if nearest.is_dir() else "is not a folder"
        raise ConfigError(f"{key}: {nearest} {what}; choose another folder")
