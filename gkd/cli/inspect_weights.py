"""Say what weight files hold: `tools/inspect_weights.py FILE [FILE …] [--json OUT]`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkd.cli import EXIT_REFUSED, run_tool
from gkd.core.errors import GkdError
from gkd.core.files import atomic_write
from gkd.models import (
    Backbone,
    InputSpec,
    LoadReport,
    OnnxBackbone,
    count_macs,
    load_class_weights,
    load_network,
    num_parameters,
)
from gkd.models.onnx_cost import count_onnx

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Inspection:
    """What one file holds: lines for the terminal, each a name and a text, and the same as plain values."""

    lines: tuple[tuple[str, str], ...]
    values: dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tool; returns the exit code, 2 where a file was refused."""
    arguments = _parser().parse_args(argv)
    return run_tool(lambda: _run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools/inspect_weights.py",
        description="What weight files hold: project, network, cost, input, class weights. No code in them is run.",
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE", help="weights of a network or of classes, of any known project")
    add("--json", type=Path, metavar="OUT", help="also write what was found to this JSON file")
    return parser


def _run(arguments: argparse.Namespace) -> int:
    documents, is_refused = [], False
    for path in arguments.files:
        try:
            found = inspect_file(path)
        except GkdError as error:
            is_refused = True
            documents.append({"path": str(path), "error": str(error)})
            sys.stderr.write(f"error: {error}\n")
            continue
        documents.append({"path": str(path), **found.values})
        sys.stdout.write(f"{path}\n" + "".join(f"  {name:<15}{text}\n" for name, text in found.lines))
    if arguments.json is not None:
        with atomic_write(arguments.json) as temporary:
            temporary.write_text(json.dumps(documents, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return EXIT_REFUSED if is_refused else 0


def inspect_file(path: Path) -> Inspection:
    """What a file holds: a network, or else class weights alone.

    Raises:
        GkdError: neither, or the file is missing, damaged or unsafe; the message is that of the network's reader.
    """
    if not path.is_dir():
        try:
            return _network(*load_network(path))
        except GkdError as error:
            try:
                return _class_weights(path)
            except GkdError:
                raise error from None
    return _class_weights(path)


def _network(backbone: Backbone, report: LoadReport) -> Inspection:
    num_weights, macs = _cost(backbone, report)
    height, width = backbone.input_size
    size = report.path.stat().st_size
    prefix = f", prefix `{report.stripped_prefix}` stripped" if report.stripped_prefix else ""
    classes = "none" if report.num_classes is None else f"{report.num_classes:,} classes"
    lines = (
        ("size", f"{size / 2**20:,.1f} MiB"),
        ("sha256", report.sha256),
        ("source", report.source),
        ("family", report.family + prefix),
        ("parameters", UNKNOWN if num_weights is None else f"{num_weights:,}"),
        ("GMACs", UNKNOWN if macs is None else f"{macs / 1e9:.3f}"),
        ("embedding", f"{backbone.embedding_dim} numbers"),
        ("images", f"{height} x {width} pixels"),
        ("input", _input_text(report)),
        ("class weights", classes),
        *(("note", note) for note in report.notes),
        ("use", _usage(report)),
    )
    values = {
        "size_bytes": size,
        "sha256": report.sha256,
        "source": report.source,
        "family": report.family,
        "architecture": report.architecture,
        "stripped_prefix": report.stripped_prefix,
        "num_tensors": report.num_tensors,
        "num_parameters": num_weights,
        "macs": macs,
        "embedding_dim": backbone.embedding_dim,
        "input_size": [height, width],
        "input": None if report.input_spec is None else _input_values(report.input_spec),
        "input_reason": report.input_reason,
        "is_input_certain": report.is_input_certain,
        "num_classes": report.num_classes,
        "notes": list(report.notes),
    }
    return Inspection(lines, values)


def _class_weights(path: Path) -> Inspection:
    weights, description = load_class_weights(path)
    num_classes, embedding_dim = weights.shape
    lines = (("class weights", description), ("embedding", f"{embedding_dim} numbers"), ("network", "none"))
    return Inspection(lines, {"class_weights": description, "num_classes": num_classes, "embedding_dim": embedding_dim})


def _cost(backbone: Backbone, report: LoadReport) -> tuple[int | None, int | None]:
    """Parameters and multiply-accumulates."""
    if isinstance(backbone, OnnxBackbone):
        cost = count_onnx(report.path, input_size=backbone.input_size)
        return cost.num_parameters, cost.macs
    return num_parameters(backbone), count_macs(backbone)


def _input_text(report: LoadReport) -> str:
    spec = UNKNOWN if report.input_spec is None else str(report.input_spec)
    advice = "" if report.is_input_certain else "; declare it, and check it on faces"
    return f"{spec} ({report.input_reason}{advice})"


def _usage(report: LoadReport) -> str:
    command = f"tools/eval.py --weights {shlex.quote(str(report.path))} --data lfw.bin"
    if report.is_input_certain:
        return command
    if report.input_spec is None:
        return f"{command} --color rgb|bgr --mean M --std S"
    mean, std = _numbers(report.input_spec.mean), _numbers(report.input_spec.std)
    return f"{command} --color {report.input_spec.color} --mean {mean} --std {std}"


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _input_values(spec: InputSpec) -> dict[str, Any]:
    return {"color": spec.color, "mean": list(spec.mean), "std": list(spec.std)}
