"""Every key of every YAML file, with its meaning. Settings of Parts are in the classes that their names stand for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from gkd.core.config import ConfigModel, FilePath, Part, PartOf
from gkd.data import DATASETS
from gkd.data.augment import AUGMENTATIONS
from gkd.data.sampling import SAMPLINGS
from gkd.distill import GROUPINGS, LOSSES, Grouping
from gkd.heads import HEADS, MARGINS
from gkd.models import BACKBONES, InputSpec
from gkd.models.create import ONNX_PREFIX
from gkd.models.onnx_backbone import OnnxBackbone
from gkd.models.timm_adapter import TimmBackbone
from gkd.train.schedule import SCHEDULES

DataPart = Annotated[Part, PartOf(DATASETS, "dataset", include=["path"])]
SamplingPart = Annotated[Part, PartOf(SAMPLINGS, "sampling", is_checked=True)]
AugmentPart = Annotated[Part, PartOf(AUGMENTATIONS, "augmentation", is_checked=True)]
BackbonePart = Annotated[Part, PartOf(BACKBONES, "backbone", open_prefixes={"timm:": (TimmBackbone, "model")})]
TeacherBackbonePart = Annotated[
    Part,
    PartOf(
        BACKBONES, "backbone", open_prefixes={"timm:": (TimmBackbone, "model"), ONNX_PREFIX: (OnnxBackbone, "path")}
    ),
]
HeadPart = Annotated[Part, PartOf(HEADS, "head", is_checked=True, check_with=(1, 4096))]
MarginPart = Annotated[Part, PartOf(MARGINS, "margin", is_checked=True)]
LossPart = Annotated[Part, PartOf(LOSSES, "loss", nested={Grouping: GROUPINGS}, is_checked=True)]
DecayPart = Annotated[Part, PartOf(SCHEDULES, "decay", is_checked=True)]

Precision = Literal["fp32", "bf16"]
TrainPrecision = Literal["fp32", "bf16", "fp16"]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
PixelValue = Annotated[float, Field(ge=0, le=255)]
PixelDeviation = Annotated[float, Field(gt=0, le=255)]


class RunSettings(ConfigModel):
    """Where a run lives and what its random numbers start from."""

    folder: FilePath = Field(description="folder of the run: config, logs, checkpoints, weights")
    seed: int = Field(default=1024, ge=0, lt=2**32, description="start of every random number of the run")


class MoreData(ConfigModel):
    """A further set of training images."""

    data: DataPart = Field(description="training images, as in `train`")
    weight: float = Field(default=1.0, gt=0, description="passes over this set in an epoch; 0.5 takes half of it")


class DataSettings(ConfigModel):
    """Training images, in which order they come, how they are read and changed."""

    train: DataPart = Field(
        description="training images: recordio (a .rec), folder (one folder an identity) or webdataset (tar shards)"
    )
    train_weight: float = Field(default=1.0, gt=0, description="passes over `train` in an epoch, where `more` is set")
    more: tuple[MoreData, ...] = Field(default=(), description="further sets, trained on together with `train`")
    identities: Literal["separate", "by_name"] = Field(
        default="separate", description="whether equal names in several sets are one identity"
    )
    sampling: SamplingPart = Field(default="uniform", validate_default=True, description="the order of the images")
    augment: tuple[AugmentPart, ...] = Field(
        default=("flip",), validate_default=True, description="changes to the images, one after another, on the device"
    )
    workers: int = Field(
        default=2, ge=0, le=256, description="processes that decode images, per rank; 0 decodes in the loop"
    )
    decode: Literal["cpu", "gpu"] = Field(
        default="cpu", description="where JPEGs are decoded; gpu is nvJPEG, whose pixels differ by a grey level or so"
    )
    on_bad_record: Literal["raise", "skip"] = Field(
        default="raise", description="what an unreadable image does to the run"
    )
    timeout_seconds: float = Field(default=600.0, gt=0, description="longest wait for a worker before the run stops")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Settings of several sets need several sets."""
        for key, default in (("train_weight", 1.0), ("identities", "separate")):
            if not raw.get("more") and raw.get(key, default) != default:
                yield key, "goes with `more`, which lists further sets; remove it, or add one"


class InputSettings(ConfigModel):
    """The student's input conversion: (pixel - mean) / std in the channel order it takes."""

    color: Literal["rgb", "bgr"] = Field(default=InputSpec.color, description="channel order that the network takes")
    mean: tuple[PixelValue, PixelValue, PixelValue] = Field(
        default=InputSpec.mean, description="per channel, in 0..255 units"
    )
    std: tuple[PixelDeviation, PixelDeviation, PixelDeviation] = Field(
        default=InputSpec.std, description="per channel, in 0..255 units"
    )

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Figures for pixels in 0..1 are a common slip."""
        std = raw.get("std")
        if isinstance(std, list | tuple) and std and all(isinstance(value, float) and 0 < value < 1 for value in std):
            yield "std", f"{list(std)} is for pixels in 0..1; here pixels are 0..255: multiply mean and std by 255"


class TeacherInput(InputSettings):
    """What a network that is not ours takes. None of it is guessed: a wrong one still works, only worse."""

    color: Literal["rgb", "bgr"] = Field(description="channel order that the network takes")
    mean: tuple[PixelValue, PixelValue, PixelValue] = Field(description="per channel, in 0..255 units")
    std: tuple[PixelDeviation, PixelDeviation, PixelDeviation] = Field(description="per channel, in 0..255 units")


KeptDtype = Literal["float16", "bfloat16"]


class CacheSettings(ConfigModel):
    """The teacher's embeddings of all training images and their mirror images, computed once."""

    folder: FilePath = Field(description="where they are kept; made where missing, and shared by all runs with them")
    dtype: KeptDtype = Field(default="float16", description="type of the kept numbers; 2 bytes either way")


class CentreSettings(ConfigModel):
    """Class weights made of the teacher's own embeddings: the mean of each identity."""

    folder: FilePath = Field(
        description="where the teacher's embeddings of the training images and the centres are kept; made where missing"
    )
    dtype: KeptDtype = Field(default="float16", description="type of the kept numbers; 2 bytes either way")
    min_cosine: Annotated[float, Field(ge=-1, lt=1)] | None = Field(
        default=None, description="leave out images less similar than this to the rest of their class; null keeps all"
    )
    reuse_embeddings: bool = Field(
        default=True, description="train from the kept embeddings instead of running the teacher on every batch"
    )


class TeacherSettings(ConfigModel):
    """A frozen network to distil from, and the proof it must give before the first step.

    The network is that of a `run`, or one from elsewhere: `weights`, whose family is told by its contents, or a
    `backbone` that needs no file or whose file does not tell. Its class weights are those of the run, `class_weights`,
    or `centres`.
    """

    run: FilePath | None = Field(
        default=None, description="folder of the teacher's finished run, with its student.pt and head.pt"
    )
    weights: FilePath | None = Field(
        default=None, description="a weight file of any known project (tools/inspect_weights.py), or an .onnx file"
    )
    backbone: TeacherBackbonePart | None = Field(
        default=None, description="the network, where `weights` does not tell: timm:<name>, or onnx:<path> alone"
    )
    input: TeacherInput | None = Field(
        default=None, description="the input conversion; null takes what the weights are known to need"
    )
    class_weights: FilePath | None = Field(
        default=None,
        description="the class weights it was trained with, of these very classes: head.pt, a training checkpoint, or "
        "a folder of their shards",
    )
    centres: CentreSettings | None = Field(
        default=None, description="class weights from the embeddings of the training images, where there are no others"
    )
    cache: CacheSettings | None = Field(
        default=None,
        description="compute the embeddings once and train from them; with `centres` that happens anyway",
    )
    sees: Literal["augmented", "original"] = Field(
        default="augmented",
        description="what the teacher is shown: the image as the student sees it, or only mirrored as that one (kept "
        "embeddings know no other change)",
    )
    margin: MarginPart | None = Field(
        default=None, description="margin of logits over centres or class_weights; null takes that of the run"
    )
    check_pairs: FilePath = Field(description="pair set (.bin) on which the teacher must verify faces")
    min_accuracy: Fraction = Field(description="verification accuracy that the teacher must reach, a fraction")
    min_train_rank1: Fraction = Field(description="share of training images whose own class must rank first")
    check_samples: int = Field(default=1000, ge=1000, description="training images that the rank-1 check looks at")
    precision: Precision = Field(default="fp32", description="arithmetic of the teacher's forward pass")
    batch_size: PositiveInt | None = Field(
        default=None,
        description="images that a live teacher embeds at once; null is a rank's share of a step, on a CPU 16",
    )
    compile: bool = Field(default=False, description="run a live teacher through torch.compile")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """One source of the network and of its class weights, with all that it needs and nothing that it does not."""
        keys = ("run", "backbone", "weights", "input", "class_weights", "centres", "cache", "margin")
        given = {key for key in keys if raw.get(key) is not None}
        if ("run" in given) == bool(given & {"backbone", "weights"}):
            which = "both are set" if "run" in given else "neither is set"
            yield "run", f"a teacher comes from a finished run (`run`) or from `weights` or `backbone`, and {which}"
            return
        if "run" in given:
            for key in sorted(given & {"input", "class_weights"}):
                yield key, "goes with `weights` or `backbone`; a run has its own: remove it"
        else:
            yield from _foreign_checks(given, _part_name(raw.get("backbone")))
        if "margin" in given and not given & {"centres", "class_weights"}:
            yield "margin", "goes with `centres` or `class_weights`; a run keeps the margin it was trained with"
        yield from _cache_checks(given, raw)


def _foreign_checks(given: set[str], backbone: str) -> Iterator[tuple[str, str]]:
    if len(given & {"centres", "class_weights"}) != 1:
        what = "both are set" if "centres" in given else "missing"
        origin = "`class_weights` (a file of those that the network was trained with, for these very classes)"
        yield "centres", f"{what}: class weights come from {origin} or are class `centres` (name a folder for them)"
    if backbone and "input" not in given and "weights" not in given:
        yield "input", "missing: say which color, mean and std `backbone` was trained with"
    if backbone.startswith(ONNX_PREFIX) and "weights" in given:
        yield "weights", "an ONNX file holds its weights: remove it"
    if backbone and not backbone.startswith(ONNX_PREFIX) and "weights" not in given:
        yield "weights", "missing: the file that holds the weights of `backbone`"


def _cache_checks(given: set[str], raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    centres = raw.get("centres")
    keeps = isinstance(centres, Mapping) and centres.get("reuse_embeddings", True) is not False
    if {"centres", "cache"} <= given:
        yield "cache", "`centres` keeps the embeddings in its own folder, and training reads them there: remove it"
    if raw.get("sees") == "original" and not keeps and "cache" not in given:
        yield "sees", "a live teacher sees what the student sees: set `cache`, or remove it"
    if (keeps or "cache" in given) and (raw.get("compile") or raw.get("batch_size") is not None):
        key = "compile" if raw.get("compile") else "batch_size"
        yield key, "is for a teacher that runs on every batch, and this one's embeddings are kept: remove it"


def _part_name(part: Any) -> str:
    name = part.get("name") if isinstance(part, Mapping) else part
    return name if isinstance(name, str) else ""


class DistillTerm(ConfigModel):
    """One distillation loss of the total."""

    loss: LossPart = Field(description="which distillation loss")
    weight: NotNegative = Field(default=1.0, description="factor of the loss in the total, after warm-up")
    warmup_epochs: int = Field(
        default=10, ge=0, description="epochs over which the weight rises from 0; 0 is full at once"
    )
    student_margin: bool = Field(default=True, description="keep the margin on the student's distilled logits")
    teacher_margin: bool = Field(default=True, description="keep the margin on the teacher's distilled logits")


class StartSettings(ConfigModel):
    """Weights to start from instead of random ones; a run that resumes has its own."""

    weights: FilePath = Field(description="a run folder, or a weight file of the same network")
    keep_head: bool = Field(
        default=True, description="take the class weights of identities that both runs know; false draws all anew"
    )


class GroupSettings(ConfigModel):
    """Parameters that are trained in a way of their own."""

    match: Annotated[str, Field(min_length=1)] = Field(
        description="pattern of parameter names, such as backbone.layers.0.* or head.*; the first that matches counts"
    )
    lr_factor: float = Field(default=1.0, gt=0, description="their learning rate as a multiple of the schedule's")
    frozen: bool = Field(default=False, description="keep them as they are, and the statistics of batch norms in them")


class OptimSettings(ConfigModel):
    """Stochastic gradient descent and gradient clipping."""

    lr: float = Field(gt=0, description="base learning rate, at the global batch size")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum")
    nesterov: bool = Field(default=True, description="Nesterov's form of momentum; no effect where momentum is 0")
    weight_decay: NotNegative = Field(default=5e-4, description="weight decay, added to the gradient")
    decay_norm_and_bias: bool = Field(default=False, description="also decay norms, biases and PReLU slopes")
    groups: tuple[GroupSettings, ...] = Field(
        default=(), description="parameters with a learning rate of their own, or frozen"
    )
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=5.0, description="largest L2 norm of the gradient over backbone and head; null does not clip"
    )


class ScheduleSettings(ConfigModel):
    """The learning rate over the run."""

    decay: DecayPart = Field(default="cosine", validate_default=True, description="how the rate falls after warm-up")
    warmup_epochs: NotNegative = Field(default=0.0, description="epochs of linear warm-up; fractions are allowed")
    warmup_start_lr: NotNegative = Field(default=0.0, description="learning rate that the warm-up starts from")


class TrainSettings(ConfigModel):
    """The loop."""

    epochs: PositiveInt = Field(description="passes over the training images")
    batch_size: PositiveInt = Field(description="images per step over all ranks")
    micro_batches: PositiveInt = Field(default=1, description="parts that each rank's share of a batch is computed in")
    precision: TrainPrecision = Field(
        default="fp32",
        description="arithmetic of the student: fp32, bf16, or fp16 with a loss scale; the head is always fp32",
    )
    tf32: bool = Field(default=False, description="matrix products of fp32 in TF32 on CUDA, the head's too")
    channels_last: bool = Field(
        default=True, description="keep the channels of an image next to each other in memory; false keeps planes"
    )
    compile: bool = Field(default=False, description="run the student's backbone through torch.compile")
    checkpoint_activations: bool = Field(
        default=False,
        description="keep only the input of each block and compute the rest again on the way back: less memory, a "
        "forward pass more",
    )
    freeze_batch_norm: bool = Field(default=False, description="keep the batch norms at their stored statistics")
    sync_batch_norm: bool = Field(
        default=False, description="take batch-norm statistics over the images of all ranks; needs CUDA"
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="average the weights over the steps; the average is evaluated and exported"
    )
    on_non_finite: Literal["stop", "skip"] = Field(
        default="stop",
        description="what a loss or gradient that is not finite does: end the run, or leave out the step",
    )
    max_skipped: PositiveInt = Field(default=10, description="steps left out in a row before the run ends all the same")
    log_every: PositiveInt = Field(default=10, description="steps between two lines of the log")
    save_every: PositiveInt | None = Field(default=None, description="steps between checkpoints; null is once an epoch")
    keep_last: PositiveInt = Field(default=2, description="newest checkpoints kept; the best is kept besides")
    keep_every: PositiveInt | None = Field(default=None, description="also keep those of steps divisible by this")
    resume: Annotated[str, Field(min_length=1)] = Field(
        default="auto", description="auto (the newest checkpoint, if any), never, or the path of a checkpoint"
    )
    timeout_minutes: float = Field(default=10.0, gt=0, description="longest wait for another rank before the run stops")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """A batch must fill its micro-batches, and blocks that are computed again are not compiled."""
        batch_size, micro_batches = raw.get("batch_size"), raw.get("micro_batches", 1)
        if raw.get("compile") and raw.get("checkpoint_activations"):
            yield "checkpoint_activations", "does not go with `compile`: set one of the two to false"
        if raw.get("compile") and raw.get("sync_batch_norm"):
            yield "compile", "does not go with `sync_batch_norm`, whose ranks may compile at different steps"
        if isinstance(batch_size, int) and isinstance(micro_batches, int) and 1 <= batch_size < micro_batches:
            yield "micro_batches", f"{micro_batches} micro-batches cannot share a batch of {batch_size} images"


class WandbSettings(ConfigModel):
    """Figures for Weights & Biases; needs the package wandb."""

    project: Annotated[str, Field(min_length=1)] = Field(default="gkd", description="project there")
    entity: str | None = Field(default=None, description="user or team; null is the default of the account")
    name: str | None = Field(default=None, description="name of the run there; null is that of the run folder")
    mode: Literal["online", "offline"] = Field(
        default="online", description="offline writes into the run folder, for `wandb sync`"
    )


class MlflowSettings(ConfigModel):
    """Figures for MLflow; needs the package mlflow."""

    experiment: Annotated[str, Field(min_length=1)] = Field(default="gkd", description="experiment there")
    name: str | None = Field(default=None, description="name of the run there; null is that of the run folder")
    tracking_uri: str | None = Field(
        default=None, description="http://host:port, sqlite:///file.db …; null is MLflow's own choice"
    )


class LogSettings(ConfigModel):
    """What a run shows of itself beside its figures; none of it changes the result."""

    histograms_every: PositiveInt | None = Field(
        default=100, description="steps between histograms of the images' target cosine, group size and Primary mass"
    )
    images: bool = Field(
        default=False, description="show training images in TensorBoard, faces too: augmented ones and the hardest"
    )
    images_every: PositiveInt = Field(default=1000, description="steps between such pictures")
    num_images: int = Field(default=16, ge=1, le=256, description="images of a picture")
    projector: int = Field(
        default=0, ge=0, le=10_000, description="training images whose embeddings every evaluation shows; 0 is none"
    )
    wandb: WandbSettings | None = Field(default=None, description="also send the figures to Weights & Biases")
    mlflow: MlflowSettings | None = Field(default=None, description="also send the figures to MLflow")


class EvaluationSettings(ConfigModel):
    """Verification during and after training."""

    sets: tuple[FilePath, ...] = Field(
        default=(), description="pair sets (.bin) to verify on; each is named by its file"
    )
    every: PositiveInt | None = Field(default=None, description="steps between evaluations; null is once an epoch")
    flip: bool = Field(default=True, description="add the embedding of the mirrored image")
    batch_size: PositiveInt | None = Field(
        default=None, description="images embedded at once; null is 64, and 16 on a CPU, where larger ones are slower"
    )
    max_seconds: float | None = Field(
        default=None,
        gt=0,
        description="longest time for one evaluation; later sets that would not fit are left out. null: no limit",
    )


class TrainRun(ConfigModel):
    """A training run: a teacher, an undistilled student or a distilled one."""

    run: RunSettings = Field(description="where the run lives")
    data: DataSettings = Field(description="training images")
    backbone: BackbonePart = Field(description="the network that is trained")
    input: InputSettings = Field(default=InputSettings(), description="how the network takes its pixels")
    start: StartSettings | None = Field(default=None, description="weights to start from: fine-tuning")
    head: HeadPart = Field(
        default="softmax",
        validate_default=True,
        description="embeddings to class scores: softmax (every class on every rank), sharded, or partial_fc",
    )
    margin: MarginPart = Field(description="class scores to logits")
    teacher: TeacherSettings | None = Field(default=None, description="the network to distil from; goes with `distill`")
    distill: tuple[DistillTerm, ...] = Field(default=(), description="distillation losses; goes with `teacher`")
    optim: OptimSettings = Field(description="the optimiser, with its learning rate")
    schedule: ScheduleSettings = Field(default=ScheduleSettings(), description="the learning rate over the run")
    train: TrainSettings = Field(description="length of the run and size of a batch")
    evaluation: EvaluationSettings = Field(default=EvaluationSettings(), description="verification during the run")
    log: LogSettings = Field(default=LogSettings(), description="what the run shows of itself")

    @classmethod
    def cross_checks(cls, raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """`teacher` and `distill` go together, and warm-up ends within the run."""
        if raw.get("distill") and raw.get("teacher") is None:
            yield "distill", "needs `teacher`, which is not set: add it, or remove `distill` to train without one"
        if raw.get("teacher") is not None and not raw.get("distill"):
            yield "teacher", "is set, but `distill` has no loss that uses it: add one, or remove `teacher`"
        warmup_epochs, epochs = _number(raw, "schedule", "warmup_epochs"), _number(raw, "train", "epochs")
        if warmup_epochs is not None and epochs is not None and warmup_epochs >= epochs > 0:
            yield "schedule", f"warmup_epochs {warmup_epochs} must be below train.epochs, which is {epochs}"


def _number(raw: Mapping[str, Any], section: str, key: str) -> float | None:
    values = raw.get(section)
    value = values.get(key) if isinstance(values, Mapping) else None
    return value if isinstance(value, int | float) else None
