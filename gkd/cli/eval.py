"""Verify faces with a trained network: `tools/eval.py --weights PATH --data FILE.bin|DIR …`.

The weights may be a run of ours or a file of any project that `tools/inspect_weights.py` knows. How a network takes its
pixels is known for most of them; an .onnx file does not say, so that is declared. Unless it is certain, it is checked.

Works on one process and under torchrun, where the images are shared over the ranks and rank 0 reports.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkd.cli import EXIT_REFUSED, run_tool
from gkd.cli.eval_report import EvalReport, write_report
from gkd.core import distributed
from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.core.log import set_up_logging
from gkd.data import PairSet
from gkd.inference.check_input import InputCheck, check_input
from gkd.inference.embed import evaluate_pairs
from gkd.models import Backbone, InputSpec, load_network
from gkd.models.create import ONNX_PREFIX
from gkd.models.load_report import OWN_SOURCE

_LOG = logging.getLogger(__name__)
_STUDENT_PLACES = ("weights/student.pt", "student.pt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code, 2 where a set or the whole was refused."""
    arguments = _parser().parse_args(argv)
    return run_tool(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/eval.py", description="Verification accuracy of a network on sets of face pairs (.bin files)."
    )
    add = parser.add_argument
    add(
        "--weights",
        type=Path,
        required=True,
        help="a run folder, an .onnx file, or a weight file of any known project",
    )
    add("--data", type=Path, required=True, nargs="+", metavar="FILE.bin|DIR", help="pair sets, or folders of them")
    add("--no-flip", action="store_true", help="embed the image alone, not image plus mirror image")
    add("--color", choices=("rgb", "bgr"), help="channel order of the network's input, against what the weights say")
    add("--mean", type=float, nargs="+", help="one or three means in 0..255 units, against what the weights say")
    add("--std", type=float, nargs="+", help="one or three deviations in 0..255 units, against what the weights say")
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="image size in pixels, for an .onnx file that leaves it open",
    )
    add("--no-input-check", action="store_true", help="trust --color, --mean and --std, and what a file's kind implies")
    add("--batch-size", type=int, default=64, help="images a forward pass (default %(default)s)")
    add("--device", help="cpu, cuda, cuda:1 …; the default is a GPU where there is one")
    add("--json", type=Path, metavar="OUT", help="also write the figures to this JSON file")
    add("--plots", type=Path, metavar="DIR", help="also draw the ROC and the scores of each set into this folder")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    with distributed.process_group():
        set_up_logging(distributed.rank())
        sets = find_sets(arguments.data)
        device = _device(arguments.device)
        weights, backbone, input_spec, is_doubtful = _load(arguments)
        backbone = backbone.to(device)
        check = None
        if is_doubtful and not arguments.no_input_check:
            check = _check_input(backbone, input_spec, sets, arguments, device)
        report = _evaluate_all(backbone, input_spec, sets, arguments, device)
        if distributed.rank() == 0:
            write_report(report, weights, input_spec, arguments, check)
        return EXIT_REFUSED if report.failures else 0


def _load(arguments: argparse.Namespace) -> tuple[Path, Backbone, InputSpec, bool]:
    """The weights' path, the network, its input conversion, and whether that one should be checked on faces."""
    path = find_student(Path(str(arguments.weights).removeprefix(ONNX_PREFIX)))
    if arguments.size is not None and path.suffix.lower() != ".onnx":
        raise ConfigError(f"--size is for an .onnx file that leaves it open; {path} says its own")
    size = None if arguments.size is None else (arguments.size[0], arguments.size[1])
    backbone, report = load_network(path, input_size=size)
    if report.input_spec is None:
        input_spec = declared_input(path, report.source, arguments)
        reason = "as declared"
    else:
        input_spec = _input_spec(report.input_spec, arguments)
        reason = report.input_reason if input_spec == report.input_spec else "as declared"
    _LOG.info("%s: %s, %s", path, report.source, report.family)
    _LOG.info("%s: input %s, %dx%d, %s", path, input_spec, *backbone.input_size, reason)
    for note in report.notes:
        _LOG.info("%s: %s", path, note)
    is_sure = report.is_input_certain and input_spec == report.input_spec
    # What a file of ours says is known from training; against it only a user can decide.
    return path, backbone, input_spec, not (is_sure or report.source == OWN_SOURCE)


def declared_input(path: Path, source: str, arguments: argparse.Namespace) -> InputSpec:
    """The input conversion of a file that does not say its own, which must be declared in full.

    Raises:
        ConfigError: a part is missing, or the numbers are in units of 0..1.
    """
    missing = [f"--{option}" for option in ("color", "mean", "std") if getattr(arguments, option) is None]
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
    return InputSpec(color=arguments.color, mean=mean, std=std)


def _plain(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _check_input(
    backbone: Backbone,
    input_spec: InputSpec,
    sets: dict[str, Path],
    arguments: argparse.Namespace,
    device: torch.device,
) -> InputCheck | None:
    """Check the declared input on the first set that has same and different pairs."""
    for path in sets.values():
        try:
            pair_set = _load_on_all_ranks(path)
        except DataError:  # told when its turn comes
            continue
        if pair_set.is_same.any() and not pair_set.is_same.all():
            return check_input(backbone, input_spec, pair_set, device=device, batch_size=arguments.batch_size)
    _LOG.warning("the declared input is not checked: no set has both same and different pairs")
    return None


def find_sets(paths: Sequence[Path]) -> dict[str, Path]:
    """The pair sets by name: a file itself, a folder's `.bin` files in order of name.

    A set bears its file's name without the ending, or its whole path where two would be called the same.

    Raises:
        DataError: paths that do not exist, all of them named, or a folder without a `.bin` file.
    """
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise DataError(f"no such pair set: {', '.join(missing)}; --data takes .bin files and folders of them")
    files = list(dict.fromkeys(file for path in paths for file in _set_files(path)))
    stems = [file.stem for file in files]
    return {file.stem if stems.count(file.stem) == 1 else str(file): file for file in files}


def _set_files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.glob("*.bin") if file.is_file())
    if not files:
        raise DataError(f"no .bin file in the folder {path}; --data takes .bin files and folders of them")
    return files


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


def _device(name: str | None) -> torch.device:
    if name is None:
        return distributed.device()
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def _input_spec(declared: InputSpec, arguments: argparse.Namespace) -> InputSpec:
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


def _three(option: str, values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        values = values * 3
    if len(values) != 3:
        raise ConfigError(f"--{option} takes one number or three, got {len(values)}")
    return values[0], values[1], values[2]


def _evaluate_all(
    backbone: nn.Module,
    input_spec: InputSpec,
    sets: dict[str, Path],
    arguments: argparse.Namespace,
    device: torch.device,
) -> EvalReport:
    report = EvalReport({}, {}, {})
    for name, path in sets.items():
        _LOG.info("evaluating %s", path)
        started = time.perf_counter()
        try:
            report.results[name] = evaluate_pairs(
                backbone,
                input_spec,
                _load_on_all_ranks(path),
                flip=not arguments.no_flip,
                batch_size=arguments.batch_size,
                device=device,
                name=str(path),
            )
        except DataError as error:
            report.failures[name] = str(error)
        report.seconds[name] = time.perf_counter() - started
    return report


def _load_on_all_ranks(path: Path) -> PairSet:
    """Load a set; where one rank cannot, all refuse it, since the others would wait for its embeddings."""
    pair_set, message = None, None
    try:
        pair_set = PairSet.load(path)
    except DataError as error:
        message = str(error)
    messages = [text for text in distributed.gather_objects(message) if text is not None]
    if messages or pair_set is None:
        raise DataError(messages[0])
    return pair_set
