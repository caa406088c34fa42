"""Read a network from a weight file of this or of another project, and say what was found.

Student files, plain state dicts, training checkpoints of known projects, `.safetensors` of any of them, and, for
`load_network`, ONNX files.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gkd.core.errors import CheckpointError, ConfigError
from gkd.models.backbone import Backbone
from gkd.models.contents import check_tensors, shapes_of
from gkd.models.create import ONNX_PREFIX
from gkd.models.families import architecture_of
from gkd.models.load_report import LoadReport, foreign_report, read_weights, student_report
from gkd.models.nearest_family import describe_unknown
from gkd.models.onnx_backbone import OnnxBackbone
from gkd.models.onnx_file import read_onnx
from gkd.models.student_file import (
    build_backbone,
    check_fit,
    fill_backbone,
    is_student,
    student_fields,
    student_input,
    student_of,
)
from gkd.models.weight_sources import Tensors, find_source, find_tensors

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def load_weights(backbone: Backbone, path: str | Path) -> LoadReport:
    """Fill a backbone from a weight file, strictly: all its tensors, and none beside them but class weights.

    A student file, a plain state dict, a training checkpoint of a known project, or `.safetensors`. One known prefix
    (`module.`, `model.`, `net.`, `backbone.`, `features.module.`, `module.features.`) is stripped.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or its tensors are not those of this backbone: the
            message names the family found and what differs.
    """
    file = read_weights(Path(path))
    if is_student(file.content):
        fields = student_fields(file.content, file.path)
        tensors = check_tensors(fields["state_dict"], str(file.path))
        check_fit(file.path, backbone, tensors, same_dtype=False)
        report = student_report(file, backbone, student_input(file.path, fields["input"], backbone))
    else:
        expected = backbone.state_dict().keys()
        found = find_tensors(file.content, file.path, lambda network: network.keys() == expected)
        tensors = found.network
        check_fit(file.path, backbone, tensors, same_dtype=False)
        report = foreign_report(file, found, backbone.architecture)
    backbone.load_state_dict(tensors)
    return report


def load_network(path: str | Path, *, input_size: tuple[int, int] | None = None) -> tuple[Backbone, LoadReport]:
    """Build the network that a weight file holds, told by the names of its tensors, and fill it strictly.

    Args:
        path: any file that `load_weights` takes, or an ONNX file.
        input_size: (H, W) in pixels where the file leaves them open; None is what it shows, or 112 x 112.

    Returns:
        The network in evaluation mode on the CPU, and what was found.

    Raises:
        CheckpointError: the file is missing, damaged or unsafe, or holds no network of a known family.
        ConfigError: `input_size` contradicts the file.
    """
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, input_size)
    file = read_weights(path)
    if is_student(file.content):
        backbone, input_spec, _ = student_of(file.content, path)
        _check_size(path, backbone, input_size)
        return backbone, student_report(file, backbone, input_spec)
    found = find_tensors(file.content, path)
    backbone = _build(file.content, found, path, input_size)
    source = find_source(found, backbone.architecture)
    if source is not None:
        _set_batch_norm_eps(backbone, source.batch_norm_eps)
    return backbone, foreign_report(file, found, backbone.architecture)


def _build(content: object, found: Tensors, path: Path, input_size: tuple[int, int] | None) -> Backbone:
    architecture = architecture_of(shapes_of(found.network))
    if architecture is None:
        raise CheckpointError(f"{path}: holds no network of a known family: {describe_unknown(content, found)}")
    if input_size is not None:
        architecture["input_size"] = list(input_size)
    backbone = build_backbone(path, architecture, on_meta=True)
    check_fit(path, backbone, found.network, same_dtype=False)
    expected = backbone.state_dict()
    tensors = {name: tensor.to(expected[name].dtype) for name, tensor in found.network.items()}
    return fill_backbone(path, architecture, backbone, tensors).eval()


def _load_onnx(path: Path, input_size: tuple[int, int] | None) -> tuple[Backbone, LoadReport]:
    backbone = OnnxBackbone(path=path, input_size=input_size)
    num_tensors = _num_initializers(path)
    report = LoadReport(
        path=path,
        family=f"ONNX network ({num_tensors} tensors)",
        stripped_prefix="",
        num_tensors=num_tensors,
        source="ONNX file",
        architecture={"name": f"{ONNX_PREFIX}{path}"},
        sha256=backbone.sha256,
        input_reason="an ONNX file does not say how it takes its pixels",
        notes=("frozen: it can teach and be evaluated, but not be trained",),
    )
    return backbone, report


def _num_initializers(path: Path) -> int:
    import onnx

    content, _ = read_onnx(path)
    return len(onnx.load_model_from_string(content).graph.initializer)


def _check_size(path: Path, backbone: Backbone, input_size: tuple[int, int] | None) -> None:
    if input_size is not None and tuple(input_size) != backbone.input_size:
        raise ConfigError(
            f"input_size {list(input_size)} was given, but {path} says {list(backbone.input_size)}; leave it out"
        )


def _set_batch_norm_eps(backbone: Backbone, eps: float) -> None:
    for module in backbone.modules():
        if isinstance(module, _BATCH_NORMS):
            module.eps = eps
