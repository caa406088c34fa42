"""`tools/prepare.py centres CONFIG`: embed a teacher's training images and make its class centres, without training."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from gkd import build
from gkd.cli.train import check_teacher_of
from gkd.core import distributed
from gkd.core.config import load_config
from gkd.core.errors import ConfigError
from gkd.core.log import set_up_logging
from gkd.schema import TrainRun


def make_centres(path: Path, overrides: Sequence[str]) -> None:
    """Make what is missing of the class centres of a training config, check its teacher, and print where they lie.

    Raises:
        ConfigError: the config has no `teacher.centres`. Others as in training.
    """
    config = load_config(path, TrainRun, overrides)
    if config.teacher is None or config.teacher.centres is None:
        raise ConfigError(f"{path}: has no teacher.centres, so there are no class centres to make")
    with distributed.process_group(config.train.timeout_minutes):
        set_up_logging(distributed.rank())
        dataset, device = build.build_dataset(config), distributed.device()
        teacher = build.build_teacher(config, dataset, device)
        check = check_teacher_of(config, teacher.teacher, dataset, device)
        if distributed.rank() == 0:
            folder = config.teacher.centres.folder
            sys.stdout.write(
                f"class centres of {dataset.num_identities} identities from {len(dataset)} images: {folder}\n"
                f"rank-1 on {check.num_samples} training images {check.train_rank1:.4f}, accuracy {check.accuracy:.4f} "
                f"on {config.teacher.check_pairs}\nlabel noise: {folder / 'label_noise.csv'}\n"
            )
