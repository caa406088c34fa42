"""Where public weight files come from: how each project wraps its networks, and what input they take.

Read from the projects' own code: deepinsight/insightface (arcface_torch), mk-minchul/AdaFace, mk-minchul/CVLface,
Tencent/TFace, JDAI-CV/FaceX-Zoo, IrvingMeng/MagFace, fdbtrs/AdaDistill, foamliu/MobileFaceNet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gkd.core.errors import CheckpointError
from gkd.models.contents import check_tensors, shapes_of
from gkd.models.families import PREFIXES, architecture_of, describe_family
from gkd.models.input_spec import InputSpec

BACKBONE_CONTAINER = "state_dict_backbone"
HEAD_CONTAINER = "state_dict_softmax_fc"
CONTAINERS = (BACKBONE_CONTAINER, "state_dict", "model_state_dict", "model", "backbone", "net")
# What training code keeps beside its backbone: the class weights and the statistics of the margin.
ASIDE = ("head.", "fc.", "parallel_fc.", "module.head.", "module.fc.", "module.parallel_fc.")

_RGB = InputSpec()
_BGR = InputSpec(color="bgr")
_BGR_128 = InputSpec(color="bgr", std=(128.0, 128.0, 128.0))
_BGR_UNIT = InputSpec(color="bgr", mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
_IMAGENET = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
_PLAIN = "a plain file does not say which project it is from"


@dataclass(frozen=True)
class Source:
    """One way in which a project writes its networks.

    Attributes:
        name: for reports.
        families: of its networks.
        input_spec: what they take.
        input_reason: one phrase that says why.
        is_input_certain: False where another project writes the same names and takes another input.
        containers: keys under which its tensors lie; empty is any, or none.
        prefixes: what all names of the network begin with; empty is any, or nothing.
        needs: names beside the network that only this project has.
        batch_norm_eps: of its batch normalisation.
        notes: what else a user should know.
    """

    name: str
    families: tuple[str, ...]
    input_spec: InputSpec
    input_reason: str
    is_input_certain: bool = False
    containers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    batch_norm_eps: float = 1e-5
    notes: tuple[str, ...] = ()


_RAW_ADAFACE = "AdaFace divides the embedding by its length in its own code; here it is raw"

# The first that fits counts.
SOURCES = (
    Source(
        name="arcface_torch training checkpoint",
        families=("iresnet", "mobilefacenet"),
        input_spec=_RGB,
        input_reason="arcface_torch's networks take RGB from -1 to 1",
        is_input_certain=True,
        containers=(BACKBONE_CONTAINER,),
    ),
    Source(
        name="MagFace checkpoint",
        families=("iresnet",),
        input_spec=_BGR_UNIT,
        input_reason="MagFace networks take BGR from 0 to 1",
        is_input_certain=True,
        prefixes=("features.module.", "module.features."),
        batch_norm_eps=2e-5,
        notes=(
            "the length of a MagFace embedding tells the quality of the image",
            "MagFace's BatchNorm has eps 2e-5: load_network sets it, but no student file keeps it",
        ),
    ),
    Source(
        name="AdaFace checkpoint",
        families=("ir",),
        input_spec=_BGR,
        input_reason="AdaFace networks take BGR from -1 to 1",
        is_input_certain=True,
        prefixes=("model.",),
        needs=("head.kernel",),
        notes=(_RAW_ADAFACE,),
    ),
    Source(
        name="AdaFace network",
        families=("ir",),
        input_spec=_BGR,
        input_reason="AdaFace networks take BGR from -1 to 1; the file holds no AdaFace head that would prove it",
        prefixes=("model.",),
        notes=(_RAW_ADAFACE,),
    ),
    Source(
        name="CVLface network",
        families=("ir", "iresnet"),
        input_spec=_RGB,
        input_reason="CVLface networks take RGB from -1 to 1, but BGR where their model.yaml says `color_space: BGR`",
        prefixes=("net.",),
    ),
    Source(
        name="FaceX-Zoo checkpoint",
        families=("mobilefacenet_facex",),
        input_spec=_BGR_128,
        input_reason="FaceX-Zoo networks take BGR, (x - 127.5) / 128",
        is_input_certain=True,
        containers=("state_dict",),
        prefixes=("backbone.",),
    ),
    Source(
        name="FaceX-Zoo MobileFaceNet layout",
        families=("mobilefacenet_facex",),
        input_spec=_BGR_128,
        input_reason=(
            "FaceX-Zoo networks take BGR, (x - 127.5) / 128; others with the same names, such as "
            f"InsightFace_Pytorch's, take RGB from -1 to 1, and {_PLAIN}"
        ),
    ),
    Source(
        name="foamliu MobileFaceNet",
        families=("mobilefacenet_relu6",),
        input_spec=_IMAGENET,
        input_reason="networks of this layout take RGB with ImageNet's mean and deviation",
        is_input_certain=True,
    ),
    Source(
        name="TFace or AdaDistill MobileFaceNet layout",
        families=("mobilefacenet_classic",),
        input_spec=_RGB,
        input_reason=f"TFace's and AdaDistill's networks take RGB from -1 to 1; {_PLAIN}",
    ),
    Source(
        name="arcface_torch backbone layout",
        families=("iresnet", "mobilefacenet"),
        input_spec=_RGB,
        input_reason=f"arcface_torch's networks take RGB from -1 to 1; {_PLAIN}",
    ),
    Source(
        name="TFace backbone layout",
        families=("ir",),
        input_spec=_RGB,
        input_reason=(f"TFace's networks take RGB from -1 to 1, but AdaFace's, with the same names, BGR; {_PLAIN}"),
    ),
)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a file: those of its network, names without their prefix, and those beside them."""

    container: str
    prefix: str
    network: dict[str, Tensor]
    aside: dict[str, Tensor]


def find_source(tensors: Tensors, architecture: Mapping[str, Any]) -> Source | None:
    """The likeliest project that wrote the file, None where none writes such a network."""
    family = re.sub(r"^(ir|iresnet)\d+$", r"\1", str(architecture.get("name")))
    return next((source for source in SOURCES if _is_of(source, tensors, family)), None)


def _is_of(source: Source, tensors: Tensors, family: str) -> bool:
    return (
        family in source.families
        and (not source.containers or tensors.container in source.containers)
        and (not source.prefixes or tensors.prefix in source.prefixes)
        and all(name in tensors.aside for name in source.needs)
    )


def unwrap(content: object) -> tuple[str, object]:
    """The key under which the tensors of a training checkpoint lie, and what lies there; no key for a plain file."""
    if isinstance(content, dict):
        for container in CONTAINERS:
            if isinstance(content.get(container), dict):
                return container, content[container]
    return "", content


def find_tensors(
    content: object, path: Path, is_network: Callable[[Mapping[str, Tensor]], bool] | None = None
) -> Tensors:
    """Split what a file holds into the network's tensors and those beside them.

    One known prefix is taken off, the first with which the names are a network's, or else the one that all bear.

    Args:
        content: of the file.
        path: for messages.
        is_network: tells by their names whether tensors are a network; None: those of a known family are.

    Raises:
        CheckpointError: no dict of finite tensors, or tensors beside the network that no class weights are.
    """
    container, inner = unwrap(content)
    given = check_tensors(inner, f"{path}: {container}" if container else str(path))
    splits = [_split(container, given, prefix) for prefix in ("", *PREFIXES)]
    for is_fitting in (is_network or is_known, is_known):
        for split in splits:
            if is_fitting(split.network):
                _check_aside(split, path)
                return split
    return next((split for split in reversed(splits) if not split.aside), splits[0])


def is_known(network: Mapping[str, Tensor]) -> bool:
    """Whether tensors are those of a network of a known family."""
    return architecture_of(shapes_of(network)) is not None


def _split(container: str, given: Mapping[str, Tensor], prefix: str) -> Tensors:
    network = {name.removeprefix(prefix): tensor for name, tensor in given.items() if name.startswith(prefix)}
    aside = {name: tensor for name, tensor in given.items() if not name.startswith(prefix)}
    return Tensors(container, prefix, network, aside)


def _check_aside(split: Tensors, path: Path) -> None:
    strange = [name for name in split.aside if not name.startswith(ASIDE)]
    if strange:
        family = describe_family(shapes_of(split.network))
        raise CheckpointError(
            f"{path}: holds {family} under `{split.prefix}` and beside it {len(strange)} tensors that belong to no "
            f"known head, such as {strange[0][:80]}; save the network's own state_dict"
        )
