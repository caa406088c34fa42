"""Figures for Weights & Biases."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gkd.train.sink_ids import keep_id, kept_id

logger = logging.getLogger(__name__)

_CONNECT_SECONDS = 30.0
_FINISH_SECONDS = 25.0


class WandbSink:
    """A run at Weights & Biases, or a folder for `wandb sync`; a resumed run continues the same one.

    Its id is kept in `wandb_id.txt` of the run folder. Only figures and the config are sent: no images, no code, no
    output of the console.

    Args:
        folder: the run folder.
        config: the resolved config, plain.
        project: W&B project.
        entity: user or team; None is the default one.
        name: shown for the run; None is the name of the run folder.
        mode: `offline` writes into the run folder and needs no account.

    Raises:
        Exception: whatever `wandb` raises where it cannot connect.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        project: str,
        entity: str | None,
        name: str | None,
        mode: str,
    ) -> None:
        wandb: Any = import_module("wandb")  # only here: it need not be installed
        path = folder / "wandb_id.txt"
        run_id = kept_id(path)
        if run_id is None:
            run_id = secrets.token_hex(8)
            keep_id(path, run_id)
        self._run: Any = wandb.init(
            project=project,
            entity=entity,
            name=name or folder.name,
            id=run_id,
            resume="allow",
            dir=str(folder),
            mode=mode,
            config=dict(config),
            save_code=False,
            settings=wandb.Settings(**_settings(wandb)),
        )
        self._run.define_metric("*", step_metric="train_step")

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        # Its own step must grow at every call, and two records of one step (training, evaluation) are usual.
        self._run.log({**values, "train_step": step, "time": wall_time})

    def close(self, is_failed: bool) -> None:
        self._run.finish(exit_code=int(is_failed))


def _settings(wandb: Any) -> dict[str, Any]:
    """No captured console, no git or machine details, and bounded waits where this version knows them."""
    settings = {
        "console": "off",
        "silent": True,
        "disable_git": True,
        "disable_job_creation": True,
        "init_timeout": _CONNECT_SECONDS,
        "finish_timeout": _FINISH_SECONDS,
    }
    known = getattr(wandb.Settings, "model_fields", settings)
    if "finish_timeout" not in known:
        logger.warning("this version of wandb may hold up the end of the run where its server is down; update it")
    return {name: value for name, value in settings.items() if name in known}
