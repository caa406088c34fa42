"""Figures for MLflow."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from gkd.train.board_hparams import hyper_parameters
from gkd.train.sink_ids import keep_id, kept_id

# What a name may not hold there.
_NOT_ALLOWED = re.compile(r"[^A-Za-z0-9_\-. :/]")
# Limits of MLflow: parameters in one call, and characters of one.
_MAX_PARAMETERS = 100
_MAX_CHARACTERS = 500
# The sink is tried again by its thread; MLflow's own patience is minutes, at the end of a run too.
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}


class MlflowSink:
    """A run at an MLflow server or in one of its databases; a resumed run continues the same one.

    Its id is kept in `mlflow_id.txt` of the run folder. Only figures and the config are sent. Characters that MLflow
    allows in no name become `_`: `tar@far=0.001` is `tar_far_0.001` there.

    Args:
        folder: the run folder.
        config: the resolved config, plain.
        experiment: made where it does not exist.
        name: shown for the run; None is the name of the run folder.
        tracking_uri: of the server or store; None is what MLflow itself takes, its environment variable first.

    Raises:
        Exception: whatever `mlflow` raises where it cannot connect.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        *,
        experiment: str,
        name: str | None,
        tracking_uri: str | None,
    ) -> None:
        for variable, value in _PATIENCE.items():
            os.environ.setdefault(variable, value)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of every try
        self._entities: Any = import_module("mlflow.entities")  # only here: it need not be installed
        self._client: Any = import_module("mlflow.tracking").MlflowClient(tracking_uri=tracking_uri)
        path = folder / "mlflow_id.txt"
        run_id = kept_id(path)
        if run_id is None:
            run_id = self._create(experiment, name or folder.name)
            keep_id(path, run_id)
            self._send_parameters(run_id, config)
        else:
            self._client.update_run(run_id, status="RUNNING")
        self._run_id = run_id

    def scalars(self, step: int, values: Mapping[str, float], wall_time: float) -> None:
        milliseconds = int(wall_time * 1000)
        metrics = [self._entities.Metric(_allowed(name), value, milliseconds, step) for name, value in values.items()]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def close(self, is_failed: bool) -> None:
        self._client.set_terminated(self._run_id, status="FAILED" if is_failed else "FINISHED")

    def _create(self, experiment: str, name: str) -> str:
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
        run_id: str = self._client.create_run(experiment_id, run_name=name).info.run_id
        return run_id

    def _send_parameters(self, run_id: str, config: Mapping[str, Any]) -> None:
        plain = hyper_parameters(config)
        params = [self._entities.Param(_allowed(key), str(value)[:_MAX_CHARACTERS]) for key, value in plain.items()]
        for first in range(0, len(params), _MAX_PARAMETERS):
            self._client.log_batch(run_id, params=params[first : first + _MAX_PARAMETERS], synchronous=True)


def _allowed(name: str) -> str:
    return _NOT_ALLOWED.sub("_", name)
