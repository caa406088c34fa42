"""Runs networks over pair sets and IJB folders for the evaluation tool, on every rank."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from gkd.cli.eval_models import EvalModel
from gkd.cli.eval_sets import LoadedSet, load_set
from gkd.core import distributed
from gkd.core.errors import DataError, GkdError
from gkd.data import PairSet
from gkd.data.image_header import image_format
from gkd.data.pair_values import pair_sharpness
from gkd.evaluation import VerificationIntervals, VerificationResult
from gkd.evaluation.ijb import IjbOptions, IjbResult
from gkd.inference.check_input import InputCheck, check_input
from gkd.inference.ijb_embed import evaluate_ijb
from gkd.inference.kept_pair_embeddings import evaluate_pairs_kept
from gkd.inference.robustness import RobustnessResult, measure_robustness
from gkd.inference.views import needed_views

_LOG = logging.getLogger(__name__)
_NUM_ERROR_PAIRS = 12  # of each kind, of each model and set


@dataclass(frozen=True)
class WrongPair:
    """A pair that is judged wrongly at the set's threshold, as JPEG bytes."""

    index: int
    is_same: bool
    cosine: float
    left: bytes
    right: bytes


@dataclass
class SetFigures:
    """What a model reached on a set.

    images_per_second: None where the embeddings were kept from an earlier evaluation. intervals: over pairs.
    identity_intervals: over the persons on the pairs, where these are known. notes: why there are no such intervals.
    """

    result: VerificationResult
    seconds: float
    images_per_second: float | None
    wrong_pairs: tuple[WrongPair, ...] = ()
    intervals: VerificationIntervals | None = None
    identity_intervals: VerificationIntervals | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class ModelFigures:
    """What a model reached, by the name of the set; `failed` holds the messages of the sets without figures."""

    model: EvalModel
    input_check: InputCheck | None = None
    sets: dict[str, SetFigures] = field(default_factory=dict)
    ijb: dict[str, IjbResult] = field(default_factory=dict)
    robustness: dict[str, RobustnessResult] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def images_per_second(self) -> float | None:
        """Over all sets whose embeddings were computed."""
        timed = [each for each in self.sets.values() if each.images_per_second is not None]
        if not timed:
            return None
        return sum(2 * each.result.num_pairs for each in timed) / sum(each.seconds for each in timed)


@dataclass(frozen=True)
class SetFacts:
    """What there is to say of a set without its images; `ids`, `quality` and `yaw` as in `LoadedSet`."""

    path: Path
    num_pairs: int
    num_same: int
    identities: Path | None
    ids: npt.NDArray[np.int64] | None
    quality: npt.NDArray[np.float64] | None = None
    yaw: npt.NDArray[np.float64] | None = None


def check_inputs(
    models: Sequence[ModelFigures], sets: dict[str, Path], arguments: argparse.Namespace, device: torch.device
) -> None:
    """Check each doubtful model's input conversion on the first set that has same and different pairs.

    Raises:
        ConfigError: a conversion is not the model's own beyond doubt.
    """
    doubtful = [figures for figures in models if figures.model.is_doubtful]
    if arguments.no_input_check or not doubtful:
        return
    pairs = _first_fit(sets)
    for figures in doubtful:
        model = figures.model
        if pairs is None:
            _LOG.warning(
                "the declared input of %s is not checked: no set has both same and different pairs", model.name
            )
            continue
        with _on(device, model):
            figures.input_check = check_input(
                model.backbone, model.input_spec, pairs, device=device, batch_size=arguments.batch_size
            )


def _first_fit(sets: dict[str, Path]) -> PairSet | None:
    for path in sets.values():
        try:
            pairs = load_set(path, None).pairs
        except DataError:  # told when its turn comes
            continue
        if pairs.is_same.any() and not pairs.is_same.all():
            return pairs
    return None


def evaluate_sets(
    models: Sequence[ModelFigures], sets: dict[str, Path], arguments: argparse.Namespace, device: torch.device
) -> dict[str, SetFacts]:
    """Fill in the figures of each model on each set, a set in memory at a time; returns what is known of the sets."""
    facts: dict[str, SetFacts] = {}
    for name, path in sets.items():
        try:
            loaded = load_set(path, arguments.identities)
        except DataError as error:
            for figures in models:
                figures.failed[name] = str(error)
            continue
        labels = loaded.pairs.is_same
        quality = loaded.quality
        if quality is None and arguments.report is not None and distributed.rank() == 0:
            quality = pair_sharpness(loaded.pairs.images)
        num_same = int(labels.sum())
        facts[name] = SetFacts(path, len(labels), num_same, loaded.identities, loaded.ids, quality, loaded.yaw)
        for figures in models:
            _evaluate_one(figures, name, loaded, arguments, device)
    return facts


def _evaluate_one(
    figures: ModelFigures, name: str, loaded: LoadedSet, arguments: argparse.Namespace, device: torch.device
) -> None:
    model = figures.model
    _LOG.info("evaluating %s on %s", model.name, loaded.path)
    started = time.perf_counter()
    try:
        with _on(device, model), _count_forwards(model) as forwards:
            result = evaluate_pairs_kept(
                model.backbone,
                model.input_spec,
                loaded.pairs,
                folder=arguments.keep,
                flip=arguments.fusion,
                batch_size=arguments.batch_size,
                device=device,
                name=str(loaded.path),
            )
    except GkdError as error:  # raised on every rank, so that all go on with the next model
        figures.failed[name] = str(error)
        return
    seconds = time.perf_counter() - started
    num_images = len(loaded.pairs.images)
    is_timed = len(forwards) == _num_forwards(num_images, arguments)
    if not forwards:
        _LOG.info("%s on %s: no image was read, since the embeddings are kept in %s", model.name, name, arguments.keep)
    figures.sets[name] = SetFigures(result, seconds, num_images / seconds if is_timed else None)
    if arguments.show_faces:
        figures.sets[name].wrong_pairs = _wrong_pairs(result, loaded.pairs)
    if arguments.robustness is not None:
        try:
            _degrade(figures, name, loaded.pairs, arguments, device)
        except GkdError as error:  # the figures of the undegraded images stand
            figures.failed[f"{name}, degraded"] = str(error)


def _num_forwards(num_images: int, arguments: argparse.Namespace) -> int:
    """Forward passes of this rank where nothing is kept."""
    num_batches = -(-num_images // arguments.batch_size)
    own = len(range(distributed.rank(), num_batches, distributed.world_size()))
    return own * len(needed_views(arguments.fusion))


@contextmanager
def _on(device: torch.device, model: EvalModel) -> Iterator[None]:
    """The model on `device`, then back in the machine's memory: several need not fit onto a GPU together."""
    model.backbone.to(device)
    try:
        yield
    finally:
        model.backbone.to("cpu")


@contextmanager
def _count_forwards(model: EvalModel) -> Iterator[list[None]]:
    """A list that grows by one with each forward pass."""
    seen: list[None] = []
    handle = model.backbone.register_forward_pre_hook(lambda *_: seen.append(None))
    try:
        yield seen
    finally:
        handle.remove()


def _wrong_pairs(result: VerificationResult, pairs: PairSet) -> tuple[WrongPair, ...]:
    """The worst false accepts and the worst false rejects at the set's threshold."""
    distances = result.distances
    is_accepted = distances < result.threshold
    accepts = np.flatnonzero(is_accepted & ~result.is_same)
    rejects = np.flatnonzero(~is_accepted & result.is_same)
    worst = [
        *accepts[np.argsort(distances[accepts], kind="stable")][:_NUM_ERROR_PAIRS],
        *rejects[np.argsort(-distances[rejects], kind="stable")][:_NUM_ERROR_PAIRS],
    ]
    return tuple(
        WrongPair(
            int(index),
            bool(result.is_same[index]),
            float(result.cosines[index]),
            _as_jpeg(pairs.images[2 * index]),
            _as_jpeg(pairs.images[2 * index + 1]),
        )
        for index in worst
    )


def _as_jpeg(image: bytes) -> bytes:
    if image_format(image[:16]) == "jpeg":
        return image
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None, "the network has seen it"
    encoded: npt.NDArray[np.uint8] = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return encoded.tobytes()


def _degrade(
    figures: ModelFigures, name: str, pairs: PairSet, arguments: argparse.Namespace, device: torch.device
) -> None:
    model = figures.model
    _LOG.info("degrading the images of %s for %s", name, model.name)
    with _on(device, model):
        figures.robustness[name] = measure_robustness(
            model.backbone,
            model.input_spec,
            pairs,
            degradations=arguments.robustness or None,
            max_pairs=arguments.robustness_pairs,
            flip=arguments.fusion,
            batch_size=arguments.batch_size,
            device=device,
            name=name,
        )


def evaluate_ijb_folders(
    models: Sequence[ModelFigures], folders: dict[str, Path], arguments: argparse.Namespace, device: torch.device
) -> None:
    """Fill in the figures of each model on each IJB folder."""
    options = IjbOptions(
        use_flip_test=arguments.fusion == "sum",
        use_detector_score=not arguments.ijb_no_detector_score,
        use_norm_score=not arguments.ijb_unit_features,
    )
    for name, folder in folders.items():
        for figures in models:
            model = figures.model
            _LOG.info("evaluating %s on %s", model.name, folder)
            try:
                with _on(device, model):
                    figures.ijb[name] = evaluate_ijb(
                        model.backbone,
                        model.input_spec,
                        folder,
                        options=options,
                        batch_size=arguments.batch_size,
                        device=device,
                    )
            except GkdError as error:
                figures.failed[name] = str(error)
