"""What a weight file turned out to be: its project, its network, its input, and what lies beside the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gkd.models.backbone import Backbone
from gkd.models.class_weight_files import class_weight_name
from gkd.models.contents import shapes_of
from gkd.models.families import describe_family
from gkd.models.input_spec import InputSpec
from gkd.models.safetensors_file import is_safetensors, read_weight_file
from gkd.models.torch_archive import read_torch_archive
from gkd.models.weight_sources import HEAD_CONTAINER, Tensors, find_source

# The source of student files.
OWN_SOURCE = "student file of this project"
_MAX_NAMES = 8


@dataclass(frozen=True)
class LoadReport:
    """What a weight file turned out to be.

    Attributes:
        path: the file.
        family: of the network, and the number of its tensors: `iresnet100 (925 tensors)`.
        stripped_prefix: what the names of all its tensors began with.
        num_tensors: of the network.
        input_spec: the input the network takes, None where it is unknown.
        source: which project's kind of file it is.
        architecture: what `create_backbone` takes to build the network.
        sha256: of the file, hexadecimal.
        input_reason: one phrase that says why `input_spec` is what it is.
        is_input_certain: False where the input is a guess, or unknown: declare it, or check it on faces.
        num_classes: C of the class weights in the same file, None where it holds none or only those of one rank.
        notes: what else there is to know, one line each.
    """

    path: Path
    family: str
    stripped_prefix: str
    num_tensors: int
    input_spec: InputSpec | None = None
    source: str = "state dict of no known project"
    architecture: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    input_reason: str = "the file does not say it"
    is_input_certain: bool = False
    num_classes: int | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightFile:
    """A file's content, nothing in it checked, and the names of the objects in it that were left unread."""

    path: Path
    content: object
    unread: tuple[str, ...]
    sha256: str


def read_weights(path: Path) -> WeightFile:
    """Read a weight file of any kind but ONNX.

    Raises:
        CheckpointError: it is missing, damaged or unsafe.
    """
    unread: tuple[str, ...] = ()
    if is_safetensors(path):
        content = read_weight_file(path, "state_dict")
    else:
        archive = read_torch_archive(path)
        content, unread = archive.content, archive.unread
    with path.open("rb") as opened:
        return WeightFile(path, content, unread, hashlib.file_digest(opened, "sha256").hexdigest())


def student_report(file: WeightFile, backbone: Backbone, input_spec: InputSpec) -> LoadReport:
    """Of a student file of this project, which fits `backbone`."""
    shapes = shapes_of(backbone.state_dict())
    return LoadReport(
        path=file.path,
        family=describe_family(shapes),
        stripped_prefix="",
        num_tensors=len(shapes),
        input_spec=input_spec,
        source=OWN_SOURCE,
        architecture=dict(backbone.architecture),
        sha256=file.sha256,
        input_reason="the file says so",
        is_input_certain=True,
        notes=_unread_note(file),
    )


def foreign_report(file: WeightFile, found: Tensors, architecture: dict[str, Any]) -> LoadReport:
    """Of a file of another project, whose network has this architecture."""
    source = find_source(found, architecture)
    num_classes, class_notes = _class_weights(file.content, found)
    report = LoadReport(
        path=file.path,
        family=describe_family(shapes_of(found.network)),
        stripped_prefix=found.prefix,
        num_tensors=len(found.network),
        architecture=dict(architecture),
        sha256=file.sha256,
        num_classes=num_classes,
        notes=(*class_notes, *_unread_note(file)),
    )
    if source is None:
        return report
    known = {
        "source": source.name,
        "input_spec": source.input_spec,
        "input_reason": source.input_reason,
        "is_input_certain": source.is_input_certain,
        "notes": (*source.notes, *report.notes),
    }
    return LoadReport(**{**vars(report), **known})


def _class_weights(content: object, found: Tensors) -> tuple[int | None, tuple[str, ...]]:
    """C, and what to say of the class weights that lie beside the network."""
    known = class_weight_name(found.aside)
    if known is not None and found.aside[known.name].dim() == 2:
        num_classes = found.aside[known.name].shape[1 if known.is_transposed else 0]
        return num_classes, (f"head of {num_classes} classes left out",)
    if found.aside:
        return None, (f"left out beside the network: {_listed(sorted(found.aside))}",)
    head = content.get(HEAD_CONTAINER) if isinstance(content, dict) else None
    weights = head.get("weight") if isinstance(head, dict) else None
    if isinstance(weights, Tensor) and weights.dim() == 2:
        return None, (f"head of one rank with {len(weights)} classes left out",)
    return None, ()


def _unread_note(file: WeightFile) -> tuple[str, ...]:
    return (f"pickled objects left unread: {_listed(list(file.unread))}",) if file.unread else ()


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(name[:80] for name in names[:_MAX_NAMES]) + more
