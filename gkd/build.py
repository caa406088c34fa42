"""From a config to objects: the only module that knows both."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gkd.build_teacher import TeacherParts, input_spec_of, require_same_size
from gkd.core import distributed
from gkd.core.config import build_part, to_plain
from gkd.core.errors import ConfigError
from gkd.data import DATASETS, FaceData, PairSet
from gkd.data.augment import AUGMENTATIONS, Augment
from gkd.data.face_data import is_streamed
from gkd.data.joined import JoinedFaces
from gkd.data.sampling import SAMPLINGS, Order
from gkd.distill import GROUPINGS, LOSSES, GroupedKD
from gkd.heads import HEADS, MARGINS, Head, Margin, PartialFCHead, ShardedHead
from gkd.models import Backbone, InputSpec, create_backbone
from gkd.schema import TrainRun
from gkd.train.fine_tune import start_from
from gkd.train.metrics import RunLog
from gkd.train.mlflow_sink import MlflowSink
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.optim import GroupRule, build_sgd
from gkd.train.recompute import recompute_blocks
from gkd.train.row_sgd import RowSgd
from gkd.train.sample_view import SampleView
from gkd.train.schedule import SCHEDULES, Schedule
from gkd.train.sharded_objective import ShardedClassification, ShardedDistillation
from gkd.train.sinks import BackgroundSink, Sink, require_package
from gkd.train.trainer import LoopSettings
from gkd.train.wandb_sink import WandbSink

logger = logging.getLogger(__name__)


def build_dataset(config: TrainRun) -> FaceData:
    """The training data: one set, or several as one.

    Raises:
        DataError: a set that is missing or damaged. ConfigError: sets that cannot be joined.
    """
    data = config.data
    first: FaceData = build_part(data.train, DATASETS)
    if not data.more:
        return first
    sets = [first, *(build_part(more.data, DATASETS) for more in data.more)]
    if any(is_streamed(faces) for faces in sets):
        raise ConfigError("data.more: tar shards cannot be joined with other sets; write one set of shards of them all")
    weights = [data.train_weight, *(more.weight for more in data.more)]
    return JoinedFaces(sets, weights=weights, identities=data.identities)


def build_order(config: TrainRun, dataset: FaceData) -> Order:
    """The order in which training sees the images.

    Raises:
        ConfigError: an order that does not fit the data or the batch.
    """
    name = config.data.sampling.name
    if is_streamed(dataset) and name != "shards":
        raise ConfigError(
            f"data.sampling: {name} order over tar shards would fetch a shard for every image; set data.sampling=shards"
        )
    order: Order = build_part(config.data.sampling, SAMPLINGS).order(
        dataset, seed=config.run.seed, batch_size=config.train.batch_size
    )
    return order


def lane_notes(config: TrainRun) -> list[str]:
    """Shards that several loading processes read, because lanes cannot be shared out evenly."""
    sampling = config.data.sampling
    readers = config.train.micro_batches * distributed.world_size() * max(config.data.workers, 1)
    if sampling.name != "shards" or sampling.arguments()["lanes"] % readers == 0:
        return []
    return [
        f"data.sampling: {sampling.arguments()['lanes']} lanes are no multiple of {readers} (micro-batches x ranks x "
        "workers), so some shards are fetched by several loading processes"
    ]


def build_augment(config: TrainRun) -> Augment:
    """The changes to the images, in their order.

    Raises:
        ConfigError: the list holds two mirrorings.
    """
    return Augment([build_part(part, AUGMENTATIONS) for part in config.data.augment], config.run.seed)


def build_pair_sets(paths: tuple[Path, ...]) -> dict[str, PairSet]:
    """The verification sets at `paths` by name.

    Raises:
        ConfigError: two files have the same name, so that their figures could not be told apart.
    """
    sets: dict[str, PairSet] = {}
    for path in paths:
        pair_set = PairSet.load(path)
        num_same = int(pair_set.is_same.sum())
        if not 0 < num_same < len(pair_set.is_same):
            raise ConfigError(
                f"evaluation.sets: {path} has {num_same} pairs of one person and {len(pair_set.is_same) - num_same} of "
                "two; verification needs both: leave it out"
            )
        if pair_set.name in sets:
            raise ConfigError(f"evaluation.sets: two sets are named {pair_set.name!r}; rename one of the files")
        sets[pair_set.name] = pair_set
    return sets


def build_backbone(config: TrainRun) -> Backbone:
    """The backbone to be trained."""
    return create_backbone(config.backbone.name, **config.backbone.arguments())


def build_input_spec(config: TrainRun) -> InputSpec:
    """The input convention of the backbone to be trained."""
    return input_spec_of(config.input)


def build_head(config: TrainRun, embedding_dim: int, num_classes: int) -> Head:
    """The head to be trained.

    Raises:
        ConfigError: more ranks than classes.
    """
    head: Head = build_part(config.head, HEADS, embedding_dim, num_classes)
    if isinstance(head, PartialFCHead):
        head.seed = config.run.seed
    return head


def require_shardable(config: TrainRun) -> None:
    """Refuse distillation losses that need the logits of all classes, where the head splits them over the ranks.

    Raises:
        ConfigError: as above.
    """
    if config.head.name == "softmax":
        return
    logit_terms = [(index, term.loss) for index, term in enumerate(config.distill) if _needs_logits(term.loss.name)]
    for index, loss in logit_terms:
        if not issubclass(LOSSES[loss.name], GroupedKD):
            raise ConfigError(
                f"distill.{index}: {loss.name} needs the logits of all classes, which head.name={config.head.name} "
                "never has in one place; use the loss gkd (top_k with k=1 and secondary_weight set is dkd), or "
                "head.name=softmax"
            )
    if len(logit_terms) > 1:
        raise ConfigError(
            f"distill: {len(logit_terms)} losses compare logits; head.name={config.head.name} computes one in its "
            "passes over the classes: keep one, or use head.name=softmax"
        )


def _needs_logits(loss: str) -> bool:
    return "logits" in LOSSES[loss].needs


def head_notes(config: TrainRun) -> list[str]:
    """What the head's choice of classes means for distillation."""
    rate = config.head.arguments().get("sample_rate", 1.0)
    if rate == 1 or not any(_needs_logits(term.loss.name) for term in config.distill):
        return []
    return [
        f"head: Primary and Secondary are formed over the classes that partial_fc draws in each step, about {rate:g} "
        "of all, and those of the step's images; a grouping's k counts among them"
    ]


def build_margin(config: TrainRun) -> Margin:
    """The margin of the classification loss."""
    margin: Margin = build_part(config.margin, MARGINS)
    return margin


def margin_values(config: TrainRun) -> dict[str, Any]:
    """The margin as plain values, as head files keep it."""
    return {"name": config.margin.name, **config.margin.arguments()}


def build_terms(config: TrainRun) -> list[DistillTerm]:
    """The distillation terms; two of the same loss are numbered apart in the logs."""
    terms: list[DistillTerm] = []
    counts: Counter[str] = Counter()
    for term in config.distill:
        counts[term.loss.name] += 1
        count = counts[term.loss.name]
        terms.append(
            DistillTerm(
                name=term.loss.name if count == 1 else f"{term.loss.name}_{count}",
                loss=build_part(term.loss, LOSSES, tables={"grouping": GROUPINGS}),
                weight=term.weight,
                warmup_epochs=term.warmup_epochs,
                student_margin=term.student_margin,
                teacher_margin=term.teacher_margin,
            )
        )
    return terms


def warm_up_notes(config: TrainRun) -> list[str]:
    """The terms whose weight is still rising, or 0, when the run ends: legitimate, but seldom meant."""
    return [
        f"distill.{index}: the weight of {term.loss.name} warms up over {term.warmup_epochs} epochs, and the run has "
        f"{config.train.epochs}: it never reaches {term.weight:g}"
        for index, term in enumerate(config.distill)
        if term.warmup_epochs >= config.train.epochs
    ]


def build_objective(config: TrainRun, dataset: Any, teacher: TeacherParts | None, steps_per_epoch: int) -> Any:
    """The objective: classification, or classification with distillation where there is a teacher."""
    backbone = build_backbone(config)
    head = build_head(config, backbone.embedding_dim, dataset.num_identities)
    margin, input_spec = build_margin(config), build_input_spec(config)
    is_sharded = isinstance(head, ShardedHead)
    if teacher is None:
        classification = ShardedClassification if is_sharded else ClassificationObjective
        return classification(backbone, head, margin, input_spec)
    require_same_size(backbone, teacher.teacher.backbone)
    require_shardable(config)
    for note in (*warm_up_notes(config), *head_notes(config)):
        logger.warning("%s", note)
    terms = build_terms(config)
    for term in terms:  # after backbone and head, whose random numbers stay those of an undistilled run
        term.loss.set_dims(backbone.embedding_dim, teacher.teacher.head.weight.shape[1])
    teacher.teacher.shows_logits = not is_sharded and any("logits" in term.loss.needs for term in terms)
    distillation = ShardedDistillation if is_sharded else DistillationObjective
    return distillation(backbone, head, margin, input_spec, teacher.teacher, teacher.margin, terms, steps_per_epoch)


def build_optimizer(config: TrainRun, objective: nn.Module) -> RowSgd:
    """SGD as `optim` says."""
    optim = config.optim
    return build_sgd(
        objective,
        lr=optim.lr,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        weight_decay=optim.weight_decay,
        decay_norm_and_bias=optim.decay_norm_and_bias,
        groups=[GroupRule(group.match, group.lr_factor, group.frozen) for group in optim.groups],
    )


def build_guard(config: TrainRun) -> NonFiniteGuard:
    """What becomes of steps whose loss or gradient is not finite."""
    return NonFiniteGuard(config.run.folder, action=config.train.on_non_finite, max_skipped=config.train.max_skipped)


def require_sinks(config: TrainRun) -> None:
    """Refuse `log.wandb` and `log.mlflow` where their packages are not installed.

    Raises:
        ConfigError: with the command that installs what is missing.
    """
    for package in ("wandb", "mlflow"):
        if getattr(config.log, package) is not None:
            require_package(f"log.{package}", package)


def build_sinks(config: TrainRun) -> list[Sink]:
    """Where the figures go beside the run folder, each fed by a thread; none on ranks other than 0."""
    if distributed.rank() != 0:
        return []
    log, folder, plain = config.log, config.run.folder, to_plain(config)
    sinks: list[Sink] = []
    if log.wandb is not None:
        sinks.append(BackgroundSink("Weights & Biases", partial(WandbSink, folder, plain, **to_plain(log.wandb))))
    if log.mlflow is not None:
        sinks.append(BackgroundSink("MLflow", partial(MlflowSink, folder, plain, **to_plain(log.mlflow))))
    return sinks


def build_sample_view(config: TrainRun, run_log: RunLog) -> SampleView:
    """What is shown of single images."""
    log = config.log
    return SampleView(
        run_log,
        histograms_every=log.histograms_every,
        images_every=log.images_every if log.images else None,
        num_images=log.num_images,
    )


def fill_weights(config: TrainRun, objective: Any, dataset: FaceData) -> list[str]:
    """Fill the objective from `start.weights`, where they are set; returns lines for the log.

    Raises:
        CheckpointError: missing, damaged, or weights of another network. ConfigError: of another input conversion.
    """
    if config.start is None:
        return []
    return start_from(
        objective,
        config.start.weights,
        num_classes=dataset.num_identities,
        identity_names=dataset.identity_names,
        fingerprint=dataset.fingerprint,
        is_head_kept=config.start.keep_head,
    )


def steps_per_epoch(config: TrainRun, images_per_epoch: int) -> int:
    """Whole batches in an epoch; the images that fill none are left out of it, other ones in every epoch."""
    if config.train.batch_size > images_per_epoch:
        raise ConfigError(
            f"train.batch_size: {config.train.batch_size} is larger than an epoch of {images_per_epoch} images; "
            "lower it"
        )
    return images_per_epoch // config.train.batch_size


def build_schedule(config: TrainRun, images_per_epoch: int) -> Schedule:
    """The learning rate of every step."""
    per_epoch = steps_per_epoch(config, images_per_epoch)
    return Schedule(
        build_part(config.schedule.decay, SCHEDULES),
        lr=config.optim.lr,
        total_steps=per_epoch * config.train.epochs,
        steps_per_epoch=per_epoch,
        warmup_epochs=config.schedule.warmup_epochs,
        warmup_start_lr=config.schedule.warmup_start_lr,
    )


def prepare_backbone(config: TrainRun, objective: ClassificationObjective) -> None:
    """Set how the backbone is computed: the order of its numbers in memory, compiled or not, blocks computed again.

    Raises:
        ConfigError: a backbone without blocks that could be computed again.
    """
    train = config.train
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = train.tf32  # convolutions, for which torch by itself allows it
    elif train.tf32:
        logger.warning("train.tf32 changes nothing on a CPU, which has no such numbers")
    # The loader's images are (N, H, W, 3) in memory, and convolutions are faster on that order.
    if train.channels_last:
        objective.backbone.to(memory_format=torch.channels_last)
    else:
        objective.memory_format = torch.contiguous_format
    if train.checkpoint_activations:
        recompute_blocks(objective.backbone)
    if train.compile:
        objective.compile_backbone()


def build_settings(config: TrainRun, images_per_epoch: int) -> LoopSettings:
    """The loop's settings; saving and evaluating fall on the end of an epoch unless told otherwise."""
    per_epoch = steps_per_epoch(config, images_per_epoch)
    return LoopSettings(
        total_steps=per_epoch * config.train.epochs,
        steps_per_epoch=per_epoch,
        batch_size=config.train.batch_size,
        micro_batches=config.train.micro_batches,
        precision=config.train.precision,
        clip_norm=config.optim.clip_norm,
        freeze_batch_norm=config.train.freeze_batch_norm,
        log_every=config.train.log_every,
        evaluate_every=config.evaluation.every or per_epoch,
        save_every=config.train.save_every or per_epoch,
    )
