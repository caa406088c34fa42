"""`tools/prepare.py centres CONFIG` (or `cache`): embed a teacher's training images, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gkd import build
from gkd.build_teacher import build_teacher, kept_folder
from gkd.cli.train import check_and_describe
from gkd.core import distributed
from gkd.core.config import load_config
from gkd.core.errors import ConfigError
from gkd.core.log import set_up_logging
from gkd.schema import TrainRun


def make_centres(path: Path, overrides: Sequence[str]) -> None:
    """Make what is missing of a training config's teacher cache or class centres, check the teacher, and say where.

    Raises:
        ConfigError: the config has neither. Others as in training.
    """
    config = load_config(path, TrainRun, overrides)
    folder = None if config.teacher is None else kept_folder(config.teacher)
    if folder is None:
        raise ConfigError(f"{path}: has neither teacher.cache nor teacher.centres, so there is nothing to compute")
    with distributed.process_group(config.train.timeout_minutes):
        set_up_logging(distributed.rank())
        dataset, device = build.build_dataset(config), distributed.device()
        parts = build_teacher(config, dataset, device)
        check_and_describe(config, parts, dataset, device)
        if distributed.rank() == 0:
            sys.stdout.write(f"embeddings of {len(dataset)} images and their mirror images: {folder}\n")
            if config.teacher is not None and config.teacher.centres is not None:
                sys.stdout.write(
                    f"class centres of {dataset.num_identities} identities: {folder}\n"
                    f"label noise: {folder / 'label_noise.csv'}\n"
                )
