"""What a run says of its teacher at the start: where it comes from, what it costs, how good it is, how it is run."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gkd.core.errors import CheckpointError
from gkd.core.yaml_lines import printable
from gkd.inference.check_input import InputCheck
from gkd.inference.check_teacher import TeacherCheck
from gkd.inference.embedding_files import size_text
from gkd.inference.network_digest import network_digest
from gkd.inference.teacher import Teacher
from gkd.models import Backbone, OnnxBackbone, count_macs, num_parameters
from gkd.models.onnx_cost import OnnxCost, count_onnx

logger = logging.getLogger(__name__)

CARD_FILE = "teacher_card.json"
FORMAT = "gkd.teacher_card"
FORMAT_VERSION = 1
_UNKNOWN = "unknown"


@dataclass(frozen=True)
class ModelCard:
    """A teacher in plain values; None stands for what is not known.

    sha256: of the weights, `network_digest`. num_parameters, gmacs: of the backbone; multiply-accumulates in 1e9 for
    one image. input_size: (H, W) in pixels. input_reason: how the input is known. input_check: the outcome of the check
    against other inputs. class_weights: where they come from. accuracy, accuracy_std: verification on `num_pairs` pairs
    of `verification_set`, mean and standard deviation over the folds. train_rank1: on `num_train_images` training
    images. precision, execution: how the backbone is run.
    """

    source: str
    family: str | None
    sha256: str
    num_parameters: int | None
    gmacs: float | None
    embedding_dim: int
    input_size: tuple[int, int]
    input: str
    input_reason: str | None
    input_check: str
    class_weights: str
    num_classes: int
    verification_set: str | None
    num_pairs: int | None
    accuracy: float | None
    accuracy_std: float | None
    train_rank1: float | None
    num_train_images: int | None
    precision: str
    execution: str

    def lines(self) -> list[str]:
        """The card as lines of text, names and values in two columns, under a heading."""
        rows = {
            "source": self.source,
            "family": self.family or _UNKNOWN,
            "size": self._size(),
            "weights": f"sha256 {self.sha256}",
            "input": f"{self.input}, {self.input_size[0]}x{self.input_size[1]}",
            "input known by": self.input_reason or _UNKNOWN,
            "input check": self.input_check,
            "class weights": f"{self.class_weights}, {self.num_classes:,} classes",
            "verification": self._verification(),
            "training rank-1": self._train_rank1(),
            "run": self.execution,
            "precision": self.precision,
        }
        return ["teacher model card", *(f"  {name:<15} {printable(value, 1000)}" for name, value in rows.items())]

    def to_json(self) -> dict[str, Any]:
        """All values, for a JSON file."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(self),
            "input_size": list(self.input_size),
        }

    def _size(self) -> str:
        parameters = _UNKNOWN if self.num_parameters is None else f"{self.num_parameters / 1e6:.2f} M"
        gmacs = _UNKNOWN if self.gmacs is None else f"{self.gmacs:.3f} G"
        return f"{parameters} parameters, {gmacs} multiply-accumulates an image, embedding_dim {self.embedding_dim}"

    def _verification(self) -> str:
        if self.accuracy is None or self.accuracy_std is None or self.num_pairs is None:
            return _UNKNOWN
        figure = f"{100 * self.accuracy:.2f} +- {100 * self.accuracy_std:.2f} %"
        return f"{figure} on {self.num_pairs:,} pairs of {self.verification_set}"

    def _train_rank1(self) -> str:
        if self.train_rank1 is None or self.num_train_images is None:
            return _UNKNOWN
        return f"{100 * self.train_rank1:.2f} % on {self.num_train_images:,} images"


def make_card(
    teacher: Teacher,
    check: TeacherCheck | None,
    input_check: InputCheck | str,
    *,
    source: str,
    family: str | None,
    input_reason: str | None,
    class_weights: str,
    execution: str,
) -> ModelCard:
    """Gather the card of `teacher`, which still has all its class weights.

    Args:
        teacher: its network is counted on shapes alone.
        check: its figures; None where they were not measured.
        input_check: what the check of its input found, or why there was none.
        source: where its weights come from: a file, a run folder.
        family: the network's family and size in words; None where unknown.
        input_reason: how its input is known: declared, its family's, the file's own word; None where unknown.
        class_weights: where they come from: `head.pt of runs/teacher`, `class centres of 4,892 images`.
        execution: how the backbone is run, see `cached_text` and `live_text`.
    """
    network = teacher.backbone
    assert isinstance(network, Backbone)
    cost = _cost(network)
    return ModelCard(
        source=source,
        family=family,
        sha256=network_digest(network),
        num_parameters=cost.num_parameters,
        gmacs=None if cost.macs is None else cost.macs / 1e9,
        embedding_dim=network.embedding_dim,
        input_size=network.input_size,
        input=str(teacher.input_spec),
        input_reason=input_reason,
        input_check=f"not checked: {input_check}" if isinstance(input_check, str) else input_check.outcome,
        class_weights=class_weights,
        num_classes=len(teacher.head.weight),
        verification_set=None if check is None else check.pairs_name,
        num_pairs=None if check is None else check.num_pairs,
        accuracy=None if check is None else check.accuracy,
        accuracy_std=None if check is None else check.accuracy_std,
        train_rank1=None if check is None else check.train_rank1,
        num_train_images=None if check is None else check.num_samples,
        precision=teacher.precision,
        execution=execution,
    )


def _cost(network: Backbone) -> OnnxCost:
    if not isinstance(network, OnnxBackbone):
        return OnnxCost(num_parameters(network), count_macs(network))
    try:
        return count_onnx(network.path, input_size=network.input_size, sha256=network.sha256)
    except CheckpointError as error:  # gone or changed since it was read: the network runs on from memory
        logger.warning("the teacher's size is not known: %s", error)
        return OnnxCost(None, None)


def cached_text(folder: Path, num_bytes: int) -> str:
    """How a teacher is run whose embeddings are kept: `cached: 12.0 GB in FOLDER`."""
    return f"cached: {size_text(num_bytes)} in {folder}"


def live_text(precision: str, *, is_compiled: bool) -> str:
    """How a teacher is run that sees every image anew: `live, bf16, compiled`."""
    return f"live, {precision}{', compiled' if is_compiled else ''}"
