"""The networks that the evaluation tool is given: their names, weights, input conversions and costs."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from gkd.core.errors import CheckpointError, ConfigError
from gkd.core.yaml_lines import printable
from gkd.models import Backbone, InputSpec, LoadReport, OnnxBackbone, count_macs, load_network, num_parameters
from gkd.models.create import ONNX_PREFIX
from gkd.models.onnx_cost import OnnxCost, count_onnx

_LOG = logging.getLogger(__name__)
_STUDENT_PLACES = ("weights/student.pt", "student.pt")
_DECLARED = ("color", "mean", "std")
_MAX_NAME = 60


@dataclass(frozen=True)
class EvalModel:
    """A network, ready to be run.

    is_doubtful: its input conversion should be checked on faces. size: (H, W) of its images, in pixels.
    """

    name: str
    path: Path
    backbone: Backbone
    input_spec: InputSpec
    is_doubtful: bool
    source: str
    family: str
    num_parameters: int | None
    gmacs: float | None
    file_bytes: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that it takes, in pixels."""
        return self.backbone.input_size


def load_models(arguments: argparse.Namespace) -> list[EvalModel]:
    """Load every network of `--weights`, all of them before any is run.

    Raises:
        ConfigError: names, or an input conversion, that are unclear. CheckpointError: weights that cannot be used.
    """
    paths = name_weights(arguments.weights)
    if arguments.baseline is not None and arguments.baseline not in paths:
        raise ConfigError(f"--baseline {arguments.baseline}: no such model; there are {', '.join(paths)}")
    if arguments.size is not None and not any(_is_onnx(path) for path in paths.values()):
        first = next(iter(paths.values()))
        raise ConfigError(f"--size is for an .onnx file that leaves it open; {first} says its own")
    loaded = {name: _load(path, arguments) for name, path in paths.items()}
    meant = _models_meant({name: report for name, (_, report) in loaded.items()}, arguments)
    return [
        _make(name, paths[name], backbone, report, arguments if name in meant else None)
        for name, (backbone, report) in loaded.items()
    ]


def _is_onnx(path: Path) -> bool:
    return path.suffix.lower() == ".onnx"


def _load(path: Path, arguments: argparse.Namespace) -> tuple[Backbone, LoadReport]:
    size = (arguments.size[0], arguments.size[1]) if arguments.size is not None and _is_onnx(path) else None
    backbone, report = load_network(path, input_size=size)
    # Depthwise convolutions are several times faster on this order of the numbers.
    return backbone.to(memory_format=torch.channels_last), report


def name_weights(given: Sequence[str]) -> dict[str, Path]:
    """The weight files by name, from `[NAME=]PATH` each; without a name it is the run folder's or the file's.

    Names that would be the same are made longer, by the file's ending and then by the folders above.

    Raises:
        ConfigError: a name twice, weights twice, or a name that cannot be one. CheckpointError: no such weights.
    """
    parsed = [_split_name(text) for text in given]
    files = [find_student(Path(text.removeprefix(ONNX_PREFIX))) for _, text in parsed]
    choices = [
        [name] if name is not None else _default_names(file) for (name, _), file in zip(parsed, files, strict=True)
    ]
    chosen = [names[0] for names in choices]
    for step in range(1, max(len(names) for names in choices)):
        chosen = [
            names[min(step, len(names) - 1)] if chosen.count(name) > 1 else name
            for names, name in zip(choices, chosen, strict=True)
        ]
    for name, file in zip(chosen, files, strict=True):
        if chosen.count(name) > 1:
            same = [str(other) for other, its_name in zip(files, chosen, strict=True) if its_name == name]
            raise ConfigError(f"--weights: {' and '.join(same)} are both called {name!r}; give each a NAME=PATH")
        if not name.strip() or printable(name, _MAX_NAME) != name:
            raise ConfigError(f"--weights {file}: {name[:_MAX_NAME]!r} is no name; give a short NAME=PATH")
    return dict(zip(chosen, files, strict=True))


def _split_name(text: str) -> tuple[str | None, str]:
    name, equals, path = text.partition("=")
    is_path = Path(text.removeprefix(ONNX_PREFIX)).exists() or "/" in name
    return (None, text) if not equals or is_path else (name, path)


def _default_names(file: Path) -> list[str]:
    """Shorter ones first."""
    resolved = file.resolve()
    is_run = file.name == "student.pt"
    place = resolved.parent.parent if is_run and resolved.parent.name == "weights" else resolved.parent
    parts = [*place.parts[1:]] if is_run else [*resolved.parent.parts[1:], file.name]
    longer = ["/".join(parts[-count:]) for count in range(1, len(parts) + 1)]
    return longer if is_run and longer else [file.stem, *longer]


def find_student(path: Path) -> Path:
    """The weights file that `path` means: itself, or the student of a run folder.

    Raises:
        CheckpointError: there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"no such weights: {path}; give a weight file or a run folder")
    for place in _STUDENT_PLACES:
        if (path / place).is_file():
            return path / place
    raise CheckpointError(f"no {' or '.join(_STUDENT_PLACES)} in the folder {path}; give a weight file or a run folder")


def _models_meant(reports: dict[str, LoadReport], arguments: argparse.Namespace) -> list[str]:
    """The models that --color, --mean and --std are for: the only one, or those whose files do not say their input."""
    unknown = [name for name, report in reports.items() if report.input_spec is None]
    guessed = [name for name, report in reports.items() if report.input_spec and not report.is_input_certain]
    given = [f"--{option}" for option in _DECLARED if getattr(arguments, option) is not None]
    if len(reports) == 1 or not given:
        return list(reports)
    if unknown and guessed:
        raise ConfigError(
            f"{', '.join(given)}: {', '.join(unknown)} do not say their input, and that of {', '.join(guessed)} is "
            "only the usual one of their kind; evaluate these apart, so that it is clear which are meant"
        )
    if not unknown and not guessed:
        raise ConfigError(
            f"{', '.join(given)}: each of {', '.join(reports)} says its own input; leave it out, or evaluate the model "
            "alone that should take another"
        )
    return unknown or guessed


def _make(
    name: str, path: Path, backbone: Backbone, report: LoadReport, arguments: argparse.Namespace | None
) -> EvalModel:
    """The model; `arguments` are those that declare its input, None where they are not for it."""
    if report.input_spec is None:
        assert arguments is not None, "a model without an input is always meant"
        input_spec, reason = declared_input(path, report.source, arguments), "as declared"
    else:
        input_spec = report.input_spec if arguments is None else _changed(report.input_spec, arguments)
        reason = report.input_reason if input_spec == report.input_spec else "as declared"
    _LOG.info("%s: %s, %s", path, report.source, report.family)
    _LOG.info("%s: input %s, %dx%d, %s", path, input_spec, *backbone.input_size, reason)
    for note in report.notes:
        _LOG.info("%s: %s", path, note)
    cost = _cost(backbone)
    return EvalModel(
        name=name,
        path=path,
        backbone=backbone,
        input_spec=input_spec,
        is_doubtful=not (report.is_input_certain and input_spec == report.input_spec),
        source=report.source,
        family=report.family,
        num_parameters=cost.num_parameters,
        gmacs=None if cost.macs is None else cost.macs / 1e9,
        file_bytes=path.stat().st_size,
    )


def _cost(backbone: Backbone) -> OnnxCost:
    if not isinstance(backbone, OnnxBackbone):
        return OnnxCost(num_parameters(backbone), count_macs(backbone))
    return count_onnx(backbone.path, input_size=backbone.input_size, sha256=backbone.sha256)


def declared_input(path: Path, source: str, arguments: argparse.Namespace) -> InputSpec:
    """The input conversion of a file that does not say its own, which must be declared in full.

    Raises:
        ConfigError: a part is missing, or the numbers are in units of 0..1.
    """
    missing = [f"--{option}" for option in _DECLARED if getattr(arguments, option) is None]
    if missing:
        raise ConfigError(
            f"{path}: {source} does not say how it takes its pixels, and {', '.join(missing)} is not given; "
            "declare all three in units of 0..255, such as --color rgb --mean 127.5 --std 127.5 for pixels from -1 to 1"
        )
    mean, std = _three("mean", arguments.mean), _three("std", arguments.std)
    if max(std) < 1:
        hint = [_plain([255 * value for value in values]) for values in (arguments.mean, arguments.std)]
        raise ConfigError(
            f"--std {_plain(arguments.std)} is in units of 0..1, but pixels are 0..255 here; give "
            f"--mean {hint[0]} --std {hint[1]}"
        )
    color: Literal["rgb", "bgr"] = arguments.color
    return InputSpec(color=color, mean=mean, std=std)


def _changed(declared: InputSpec, arguments: argparse.Namespace) -> InputSpec:
    changes: dict[str, Any] = {}
    if arguments.color is not None:
        changes["color"] = arguments.color
    for option in ("mean", "std"):
        if getattr(arguments, option) is not None:
            changes[option] = _three(option, getattr(arguments, option))
    used = replace(declared, **changes)
    if used != declared:
        _LOG.warning("input conversion: the weights say %s; the command line makes it %s", declared, used)
    return used


def _plain(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _three(option: str, values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        values = values * 3
    if len(values) != 3:
        raise ConfigError(f"--{option} takes one number or three, got {len(values)}")
    return values[0], values[1], values[2]
