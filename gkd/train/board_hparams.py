"""A run's settings for TensorBoard's table of hyper-parameters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

Value = bool | float | str

# Where a run lives and what it writes tell nothing about its result.
_LEFT_OUT = ("run.folder", "log")


def hyper_parameters(config: Mapping[str, Any]) -> dict[str, Value]:
    """The settings of a plain config by their dotted keys; a list of values is one text, and null is left out."""
    found: dict[str, Value] = {}
    _collect(config, "", found)
    return {
        key: value
        for key, value in found.items()
        if not any(key == name or key.startswith(name + ".") for name in _LEFT_OUT)
    }


def _collect(value: Any, key: str, found: dict[str, Value]) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _collect(inner, f"{key}.{name}" if key else str(name), found)
    elif isinstance(value, list | tuple) and all(isinstance(inner, int | float | str) for inner in value):
        found[key] = ", ".join(str(inner) for inner in value)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _collect(inner, f"{key}.{index}", found)
    elif isinstance(value, bool | int | float):
        found[key] = value
    elif value is not None:
        found[key] = str(value)


def session_start(config: Mapping[str, Any], name: str) -> Summary.Value:
    """The settings of the run `name`. Its figures there are the last points of its curves."""
    info = SessionStartInfo(group_name=name, start_time_secs=time.time())
    for key, value in hyper_parameters(config).items():
        if isinstance(value, bool):
            info.hparams[key].bool_value = value
        elif isinstance(value, str):
            info.hparams[key].string_value = value
        else:
            info.hparams[key].number_value = value
    content: SummaryMetadata = metadata.create_summary_metadata(HParamsPluginData(session_start_info=info))
    return Summary.Value(tag=metadata.SESSION_START_INFO_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
