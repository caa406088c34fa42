"""From a config to the frozen network that teaches: its backbone, its class weights, its kept embeddings."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gkd.core.config import build_part
from gkd.core.errors import CheckpointError, ConfigError
from gkd.data import FaceData, PairSet
from gkd.heads import MARGINS, Margin, SoftmaxHead
from gkd.inference.check_input import check_input_once
from gkd.inference.check_teacher import TeacherCheck, check_teacher
from gkd.inference.class_centres import find_class_centres
from gkd.inference.embedding_files import STORE_FILE, Origin, check_origin, origin_of
from gkd.inference.embedding_store import find_embeddings
from gkd.inference.input_check import InputCheck
from gkd.inference.teacher import Teacher
from gkd.models import (
    Backbone,
    InputSpec,
    LoadReport,
    create_backbone,
    load_class_weights,
    load_head,
    load_network,
    load_student,
    load_weights,
)
from gkd.models.contents import shapes_of
from gkd.models.create import ONNX_PREFIX
from gkd.models.families import describe_family
from gkd.schema import CacheSettings, CentreSettings, InputSettings, TeacherSettings, TrainRun

logger = logging.getLogger(__name__)

STUDENT_FILE = Path("weights/student.pt")
HEAD_FILE = Path("weights/head.pt")


@dataclass(frozen=True)
class TeacherNetwork:
    """A frozen backbone, what it takes, and where both come from.

    `family` is None where it is not known, `input_reason` says how the input is.
    """

    backbone: Backbone
    input_spec: InputSpec
    source: str
    family: str | None
    input_reason: str


@dataclass(frozen=True)
class TeacherParts:
    """A teacher with the margin that it was trained with, and what is known of both, for the model card."""

    teacher: Teacher
    margin: Margin
    network: TeacherNetwork
    class_weights: str
    input_check: InputCheck | None


def input_spec_of(settings: InputSettings) -> InputSpec:
    """The input conversion that a config declares."""
    return InputSpec(color=settings.color, mean=settings.mean, std=settings.std)


def build_teacher_network(config: TrainRun) -> TeacherNetwork:
    """The teacher's backbone on the CPU, in eval mode.

    Raises:
        CheckpointError: a file of it is missing, damaged or of another network. ConfigError: its input conversion is
            not known, or another one than was declared.
    """
    settings = config.teacher
    assert settings is not None
    if settings.run is not None:
        return _network_of_run(settings.run)
    if settings.backbone is None:
        assert settings.weights is not None
        backbone, report = load_network(settings.weights)
        return _with_input(settings, backbone, settings.weights, report)
    backbone = create_backbone(settings.backbone.name, **settings.backbone.arguments())
    if settings.weights is not None:
        return _with_input(settings, backbone, settings.weights, load_weights(backbone, settings.weights))
    path = Path(settings.backbone.name.removeprefix(ONNX_PREFIX))
    return _with_input(settings, backbone, path, None)


def _network_of_run(folder: Path) -> TeacherNetwork:
    backbone, input_spec, extra = load_student(folder / STUDENT_FILE)
    if extra.get("step") != extra.get("total_steps"):
        logger.warning(
            "%s: this teacher's run stopped at step %s of %s", folder, extra.get("step"), extra.get("total_steps")
        )
    family = describe_family(shapes_of(backbone.state_dict()))
    return TeacherNetwork(backbone, input_spec, f"run {folder}", family, "the run was trained with it")


def _with_input(settings: TeacherSettings, backbone: Backbone, path: Path, report: LoadReport | None) -> TeacherNetwork:
    """The network with the input that was declared, or else the one that its weights are known to need."""
    known = None if report is None else report.input_spec
    source, family = (str(path), None) if report is None else (f"{path} ({report.source})", report.family)
    if settings.input is None:
        if known is None:
            raise ConfigError(
                f"teacher.input: missing, and {path} does not say how it takes its pixels; declare color, mean and std "
                "in units of 0..255"
            )
        assert report is not None
        return TeacherNetwork(backbone.eval(), known, source, family, report.input_reason)
    declared = input_spec_of(settings.input)
    if report is not None and report.is_input_certain and known not in (None, declared):
        raise ConfigError(
            f"teacher.input: {declared} was given, but {path} takes {known} ({report.input_reason}); leave "
            "teacher.input out"
        )
    return TeacherNetwork(backbone.eval(), declared, source, family, "declared in teacher.input")


def kept_folder(settings: TeacherSettings) -> Path | None:
    """Where the teacher's embeddings are kept, for training or for class centres only; None: nowhere."""
    kept = settings.cache or settings.centres
    return None if kept is None else kept.folder


def trains_from_kept(settings: TeacherSettings) -> bool:
    """Whether training reads kept embeddings instead of running the teacher."""
    return settings.cache is not None or (settings.centres is not None and settings.centres.reuse_embeddings)


def require_keepable(config: TrainRun) -> None:
    """Refuse changes to the images that kept embeddings know nothing of.

    Raises:
        ConfigError: as above, with the ways out.
    """
    names = [part.name for part in config.data.augment if part.name != "flip"]
    settings = config.teacher
    if settings is None or not names or not trains_from_kept(settings) or settings.sees == "original":
        return
    live = "teacher.cache=null" if settings.cache else "teacher.centres.reuse_embeddings=false"
    raise ConfigError(
        f"data.augment: the teacher's embeddings are kept of each image and its mirror image, which cannot stand for "
        f"{', '.join(names)}; run the teacher on what the student sees ({live}), or show it the image without them "
        f"while the student sees it with (teacher.sees=original), or leave them out"
    )


def check_teacher_files(config: TrainRun, dataset: FaceData) -> TeacherNetwork:
    """The teacher's network, after all checks of its files that need no computing; nothing is written.

    Raises:
        CheckpointError: a file of it is missing or damaged, its classes are not those of the training data, or the
            folder of its kept embeddings holds others. ConfigError: its input is unknown, or is changed by
            augmentations that kept embeddings know nothing of.
    """
    settings = config.teacher
    assert settings is not None
    require_keepable(config)
    network = build_teacher_network(config)
    if settings.centres is None:
        _class_weights(config, settings, network.backbone, dataset)
    folder, origin = kept_folder(settings), kept_origin(config, network, dataset)
    if folder is not None and origin is not None and (folder / STORE_FILE).exists():
        check_origin(folder, origin)
    return network


def kept_origin(config: TrainRun, network: TeacherNetwork, dataset: FaceData) -> Origin | None:
    """What the teacher's kept embeddings belong to; None where none are kept."""
    settings = config.teacher
    assert settings is not None
    kept = settings.cache or settings.centres
    if kept is None:
        return None
    return origin_of(network.backbone, network.input_spec, dataset, dtype=kept.dtype, precision=settings.precision)


def build_teacher(config: TrainRun, dataset: FaceData, device: torch.device) -> TeacherParts:
    """The teacher on `device`, with class weights for the classes of `dataset`.

    Where embeddings are to be kept and are not there yet, they are computed here.

    Raises:
        CheckpointError: a file of it is missing or damaged, or its classes are not those of the training data.
        ConfigError, DataError: its input is another one than declared, or its embeddings cannot be kept.
    """
    settings = config.teacher
    assert settings is not None
    require_keepable(config)
    network = build_teacher_network(config)
    backbone = network.backbone.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if settings.centres is None:  # a file at fault is met before the embeddings are computed
        weights, margin, origin = _class_weights(config, settings, backbone, dataset)
    check = None if settings.run is not None else _check_input(settings, network, device)
    if settings.centres is not None:
        centres = find_class_centres(
            settings.centres.folder,
            backbone,
            network.input_spec,
            dataset,
            min_cosine=settings.centres.min_cosine,
            **_filling(config, settings, settings.centres, device),
        )
        weights, margin = centres.weights, _margin(config, settings)
        origin = f"class centres in {settings.centres.folder}"
        stored = centres.store if settings.centres.reuse_embeddings else None
    else:
        stored = None
    head = SoftmaxHead(weights.shape[1], weights.shape[0])
    head.load_state_dict({"weight": weights})
    _compare_scales(build_part(config.margin, MARGINS).scale, margin.scale)
    teacher = Teacher(
        backbone,
        head,
        network.input_spec,
        precision=settings.precision,
        stored=stored,
        batch_size=settings.batch_size,
        compile=settings.compile,
    )
    teacher = teacher.to(device)
    if settings.cache is not None:
        # Before hours go into embeddings that are of no use; what it finds is kept for the check before training.
        check_teacher_of(settings, teacher, dataset, device)
        teacher.stored = find_embeddings(
            settings.cache.folder,
            backbone,
            network.input_spec,
            dataset,
            owner="teacher.cache.folder",
            **_filling(config, settings, settings.cache, device),
        )
    return TeacherParts(teacher, margin, network, origin, check)


def check_teacher_of(
    settings: TeacherSettings, teacher: Teacher, dataset: FaceData, device: torch.device
) -> TeacherCheck:
    """Measure a teacher and refuse it below the minima of its settings; see `check_teacher`."""
    folder = kept_folder(settings)
    return check_teacher(
        teacher,
        PairSet.load(settings.check_pairs),
        dataset,
        min_accuracy=settings.min_accuracy,
        min_train_rank1=settings.min_train_rank1,
        num_samples=settings.check_samples,
        device=device,
        record=None if folder is None else folder / "teacher_check.json",
    )


def _filling(
    config: TrainRun, settings: TeacherSettings, kept: CacheSettings | CentreSettings, device: torch.device
) -> dict[str, Any]:
    """How embeddings are computed and kept."""
    return {
        "device": device,
        "dtype": kept.dtype,
        "precision": settings.precision,
        "is_skipping": config.data.on_bad_record == "skip",
    }


def _check_input(settings: TeacherSettings, network: TeacherNetwork, device: torch.device) -> InputCheck:
    """Compare the input of a network that is not from a run of ours with the usual others.

    Measured once for a folder of kept embeddings.

    Raises:
        ConfigError: another one is better beyond doubt.
    """
    folder = kept_folder(settings)
    return check_input_once(
        None if folder is None else folder / "input_check.json",
        network.backbone,
        network.input_spec,
        PairSet.load(settings.check_pairs),
        device=device,
        origin="declared" if settings.input is not None else "presumed",
    )


def _class_weights(
    config: TrainRun, settings: TeacherSettings, backbone: Backbone, dataset: FaceData
) -> tuple[Tensor, Margin, str]:
    """Class weights (C, D) of a run or a file, the margin over them, and where they come from."""
    if settings.run is not None:
        path = settings.run / HEAD_FILE
        weights, meta = load_head(path)
        require_same_classes(path, meta, dataset)
        _require_same_dim(path, weights, backbone)
        return weights, _stored_margin(path, meta), str(path)
    assert settings.class_weights is not None
    weights, described = load_class_weights(settings.class_weights)
    if len(weights) != dataset.num_identities:
        raise CheckpointError(
            f"teacher.class_weights: {described} has {len(weights)} classes and the training data have "
            f"{dataset.num_identities}; they must be of these very classes, in their order: use teacher.centres instead"
        )
    _require_same_dim(settings.class_weights, weights, backbone)
    return weights, _margin(config, settings), described


def _margin(config: TrainRun, settings: TeacherSettings) -> Margin:
    margin: Margin = build_part(settings.margin or config.margin, MARGINS)
    return margin


def _require_same_dim(path: Path, weights: Tensor, backbone: Backbone) -> None:
    if backbone.embedding_dim != weights.shape[1]:
        raise CheckpointError(
            f"{path}: its class weights have {weights.shape[1]} numbers each and the teacher's embeddings "
            f"{backbone.embedding_dim}; both must come from one training"
        )


def _compare_scales(student: float, teacher: float) -> None:
    if student != teacher:
        logger.warning(
            "the teacher's logits have scale %s and the student's %s: distillation compares them as they are; set "
            "margin.scale=%s unless this is meant",
            teacher,
            student,
            teacher,
        )


def _stored_margin(path: Path, meta: dict[str, Any]) -> Margin:
    """The margin that a head file names; the file may come from anyone."""
    try:
        arguments = dict(meta["margin"])
        return MARGINS[arguments.pop("name")](**arguments)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{path}: does not say with which margin it was trained (margin: {meta.get('margin')!r}); use the head.pt "
            "of a run of this version"
        ) from error


def require_same_classes(path: Path, meta: dict[str, Any], dataset: Any) -> None:
    """Refuse class weights whose classes are not those of `dataset`, by identity names or else by fingerprint."""
    if meta["num_classes"] != dataset.num_identities:
        raise CheckpointError(
            f"{path}: has {meta['num_classes']} classes, the training data have {dataset.num_identities}; a teacher's "
            "class weights must come from the same class list: train the teacher on these data, or point data.train at "
            "its data"
        )
    names = meta.get("identity_names")
    if names is not None and dataset.identity_names is not None:
        for label, (theirs, ours) in enumerate(zip(names, dataset.identity_names, strict=True)):
            if theirs != ours:
                raise CheckpointError(
                    f"{path}: class {label} is {theirs!r} there and {ours!r} in the training data; a teacher's class "
                    "weights must come from the same class list in the same order"
                )
    elif meta.get("fingerprint") != dataset.fingerprint:
        raise CheckpointError(
            f"{path}: was trained on other data (fingerprint {str(meta.get('fingerprint'))[:12]}, these have "
            f"{dataset.fingerprint[:12]}), and there are no identity names on both sides to compare; train the teacher "
            "on these data, or pack both from named folders"
        )


def require_same_size(student: Backbone, teacher: Any) -> None:
    """Refuse a teacher that takes images of another size than the student: both look at the same pixels.

    Raises:
        ConfigError: the sizes differ.
    """
    if tuple(student.input_size) != tuple(teacher.input_size):
        raise ConfigError(
            f"the teacher takes images of {teacher.input_size[0]}x{teacher.input_size[1]} and the student of "
            f"{student.input_size[0]}x{student.input_size[1]}; both look at the same images: set "
            "backbone.input_size to the teacher's, or take another teacher"
        )
