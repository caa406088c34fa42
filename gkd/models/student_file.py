"""Write and read `student.pt`, which holds the whole of a trained backbone.

It is a dict that `torch.load(weights_only=True)` takes: `format`, `format_version`, `architecture` (name and all
settings), `input` (color, mean, std, size), `state_dict`, `extra` (plain values). `student.safetensors` beside it holds
the same for other tools. Both are read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd.core.errors import CheckpointError, ConfigError
from gkd.models.backbone import Backbone
from gkd.models.contents import check_format, check_plain, check_tensor, check_tensors, shapes_of
from gkd.models.create import ONNX_PREFIX, create_backbone
from gkd.models.families import describe_difference, describe_family
from gkd.models.input_spec import InputSpec
from gkd.models.safetensors_file import read_weight_file, write_both

FORMAT = "gkd.student"
FORMAT_VERSION = 1
FIELDS = {"architecture", "input", "state_dict", "extra"}


def save_student(
    path: str | Path,
    backbone: Backbone,
    input_spec: InputSpec,
    extra: Mapping[str, Any] | None = None,
    *,
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a backbone, its input conversion and some plain values, whole or not at all, and a `.safetensors` beside.

    Args:
        path: the file to write; the other has the same name with the suffix `.safetensors`.
        backbone: a network that `create_backbone` built.
        input_spec: what the network was trained with.
        extra: text, numbers, lists, dicts or None by name.
        state: the tensors to write; None: those that the backbone has now. A copy lets it go on training meanwhile.

    Raises:
        ConfigError: the backbone does not know its architecture.
        CheckpointError: a weight is not finite, `state` does not fit the backbone, or a value in `extra` is not plain.
    """
    if not backbone.architecture:
        raise ConfigError(
            "save_student needs a backbone that create_backbone built and that can be trained; a network from an ONNX "
            "file cannot be"
        )
    if state is None:
        state = backbone.state_dict()
    else:
        check_fit(Path(path), backbone, state, same_dtype=True)
    tensors = {name: check_tensor(tensor.cpu(), f"{path}: {name}") for name, tensor in state.items()}
    fields = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": check_plain(backbone.architecture, "architecture"),
        "input": {
            "color": input_spec.color,
            "mean": list(input_spec.mean),
            "std": list(input_spec.std),
            "size": list(backbone.input_size),
        },
        "extra": check_plain(dict(extra or {}), "extra"),
    }
    write_both(Path(path), fields, tensors, {**fields, "state_dict": tensors})


def load_student(path: str | Path) -> tuple[Backbone, InputSpec, dict[str, Any]]:
    """Read what `save_student` wrote: the backbone in evaluation mode on the CPU, its input conversion, the values.

    The file may come from anyone: no code in it runs, and every field is checked before it is used.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, of another format, or its tensors do not fit its
            architecture.
    """
    path = Path(path)
    return student_of(read_weight_file(path, "state_dict"), path)


def is_student(content: object) -> bool:
    """Whether the content of a weight file says what it is, as ours do; it may be another of ours than a student."""
    return isinstance(content, dict) and "format" in content


def student_of(content: object, path: Path) -> tuple[Backbone, InputSpec, dict[str, Any]]:
    """What `load_student` gives, from the content of the file."""
    fields = student_fields(content, path)
    architecture = check_plain(fields["architecture"], f"{path}: architecture")
    extra = check_plain(fields["extra"], f"{path}: extra")
    backbone = build_backbone(path, architecture, on_meta=True)
    input_spec = student_input(path, fields["input"], backbone)
    tensors = check_tensors(fields["state_dict"], f"{path}: state_dict")
    check_fit(path, backbone, tensors, same_dtype=True)
    return fill_backbone(path, architecture, backbone, tensors).eval(), input_spec, extra


def student_fields(content: object, path: Path) -> dict[str, Any]:
    """The fields in the content of a student's file, themselves not yet checked."""
    return check_format(content, path, FORMAT, FORMAT_VERSION, FIELDS)


def fill_backbone(
    path: Path, architecture: Mapping[str, Any], backbone: Backbone, tensors: Mapping[str, Tensor]
) -> Backbone:
    """Give a backbone on the meta device its tensors, which fit it."""
    backbone.load_state_dict(tensors, assign=True)
    if any(tensor.is_meta for tensor in chain(backbone.parameters(), backbone.buffers())):
        # Some networks compute tensors that no file holds.
        backbone = build_backbone(path, architecture, on_meta=False)
        backbone.load_state_dict(tensors)
    return backbone


def build_backbone(path: Path, architecture: Any, *, on_meta: bool) -> Backbone:
    """The network that a file says it holds, without its weights.

    Raises:
        CheckpointError: the settings are not those of any backbone.
    """
    if not isinstance(architecture, dict) or not isinstance(architecture.get("name"), str):
        raise CheckpointError(f"{path}: architecture must be a dict with a name, got {str(architecture)[:200]}")
    if architecture["name"].startswith(ONNX_PREFIX):  # a file that may come from anyone must not open another
        raise CheckpointError(f"{path}: architecture names another file, {architecture['name'][:200]!r}; use that file")
    try:
        # Fresh weights that are thrown away must not move the caller's random numbers.
        with torch.random.fork_rng(devices=[]), torch.device("meta" if on_meta else "cpu"):
            return create_backbone(**architecture)
    except ConfigError as error:
        raise CheckpointError(f"{path}: architecture: {error}") from error


def student_input(path: Path, fields: Any, backbone: Backbone) -> InputSpec:
    """The input conversion that a student's file says it was trained with."""
    plain = check_plain(fields, f"{path}: input")
    if not isinstance(plain, dict) or set(plain) != {"color", "mean", "std", "size"}:
        raise CheckpointError(f"{path}: input must hold color, mean, std and size, got {str(plain)[:200]}")
    if plain["size"] != list(backbone.input_size):
        raise CheckpointError(
            f"{path}: input size {plain['size']} differs from the architecture's {list(backbone.input_size)}"
        )
    try:
        return InputSpec(color=plain["color"], mean=plain["mean"], std=plain["std"])
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_fit(path: Path, backbone: Backbone, tensors: Mapping[str, Tensor], *, same_dtype: bool) -> None:
    """Names, shapes and types of `tensors` are those of the backbone; `same_dtype` False lets floats differ.

    Raises:
        CheckpointError: they are not; the message names both networks and what differs.
    """
    expected = backbone.state_dict()
    difference = describe_difference(shapes_of(expected), shapes_of(tensors))
    if difference:
        found, wanted = describe_family(shapes_of(tensors)), describe_family(shapes_of(expected))
        raise CheckpointError(f"{path} holds {found}, which does not fit {wanted}: {difference}")
    for name, tensor in expected.items():
        given = tensors[name].dtype
        are_floats = given.is_floating_point and tensor.dtype.is_floating_point
        if given != tensor.dtype and (same_dtype or not are_floats):
            raise CheckpointError(f"{path}: {name} is {given}, expected {tensor.dtype}")
