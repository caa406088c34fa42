"""A live teacher in the loop: steps shown ahead, and no loss that can tell it from kept embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gkd.core.types import Batch, Losses
from gkd.data import RecordFile, decode_image
from gkd.data.augment import Augment, Flip
from gkd.data.loader import RawBatch
from gkd.distill import LOSSES
from gkd.heads import CosFace, ShardedHead, SoftmaxHead
from gkd.inference.class_centres import ClassCentres, find_class_centres
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec
from gkd.train.metrics import RunLog, read_metrics
from gkd.train.nonfinite import NonFiniteGuard
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.optim import build_sgd
from gkd.train.rank_watch import RankWatch
from gkd.train.sharded_objective import ShardedDistillation
from gkd.train.trainer import LoopSettings, Trainer
from tests.inference.test_class_centres import write_faces

SIZE, NUM_CLASSES, DIM, TEACHER_DIM = 8, 6, 8, 12
NUM_STEPS, BATCH_SIZE = 10, 12
INPUT = InputSpec()
# A kept number is the live one rounded to fp16's 11 bits: it, and with it a whole embedding, is off by at most 2**-11
# of its length, and a cosine by as much; logits are 16 times that and softened by 4. Terms and gradients are smooth in
# them (none of the groups changes), and the student follows the same gentle steps: all stay within twice that fraction.
# Seen were at most 2**-11 of a loss at any step, and 0.8 * 2**-11 of the length of a parameter's first gradient.
TOLERANCE = 2 * 2.0**-11


class Net(nn.Module):
    """Two layers, the second under a batch norm where it is a student."""

    def __init__(self, seed: int, embedding_dim: int, *, is_student: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embedding_dim = embedding_dim
        self.input_size = (SIZE, SIZE)
        layers = [nn.Linear(3 * SIZE * SIZE, 16), nn.PReLU(), nn.Linear(16, embedding_dim, bias=not is_student)]
        self.layers = nn.Sequential(*layers, *([nn.BatchNorm1d(embedding_dim)] if is_student else []))
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        embeddings: Tensor = self.layers(images.flatten(1))
        return embeddings


def picture(identity: int, image: int) -> bytes:
    pattern = np.random.default_rng(identity).integers(0, 256, (SIZE, SIZE, 3))
    noise = np.random.default_rng((identity, image)).normal(0, 60, pattern.shape)
    return cv2.imencode(".png", np.clip(pattern + noise, 0, 255).astype(np.uint8))[1].tobytes()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RecordFile:
    faces = [(picture(identity, image), identity) for identity in range(NUM_CLASSES) for image in range(10)]
    return write_faces(tmp_path_factory.mktemp("faces") / "train.rec", faces)


@pytest.fixture(scope="module")
def centres(dataset: RecordFile, tmp_path_factory: pytest.TempPathFactory) -> ClassCentres:
    """The teacher's class weights and its kept embeddings."""
    folder = tmp_path_factory.mktemp("centres")
    return find_class_centres(folder, Net(1, TEACHER_DIM), INPUT, dataset, device=torch.device("cpu"))


def raw_batches(dataset: RecordFile, micro_batches: int) -> list[RawBatch]:
    """Steps of 12 of the 60 images, of uneven micro-batches; their memory is used anew, as the loader's is."""
    found = []
    for step in range(NUM_STEPS):
        order = np.random.default_rng(step // 5).permutation(len(dataset))
        ids = order[step % 5 * BATCH_SIZE :][:BATCH_SIZE]
        found += [(step, part) for part in np.array_split(ids, micro_batches)]
    return [raw_batch(dataset, step, torch.from_numpy(part)) for step, part in found]


def raw_batch(dataset: RecordFile, step: int, ids: Tensor) -> RawBatch:
    faces = [dataset[int(number)] for number in ids]
    images = np.stack([decode_image(encoded, (SIZE, SIZE), "an image") for encoded, _ in faces])
    return RawBatch(torch.from_numpy(images), torch.tensor([label for _, label in faces]), ids, step, step // 5, 0)


def reusing(batches: Sequence[RawBatch]) -> Any:
    """The loader's promise and no more: a batch's images are gone when the next one is asked for."""
    for batch in batches:
        yield batch
        batch.images.fill_(0)


def build_teacher(centres: ClassCentres, **settings: Any) -> Teacher:
    head = SoftmaxHead(TEACHER_DIM, NUM_CLASSES)
    head.load_state_dict({"weight": centres.weights})
    return Teacher(Net(1, TEACHER_DIM), head, INPUT, **settings)


def build_objective(name: str, head: str, teacher: Teacher) -> DistillationObjective:
    backbone = Net(2, DIM, is_student=True)
    loss = LOSSES[name]()
    loss.set_dims(DIM, TEACHER_DIM)
    margins = CosFace(scale=16.0), CosFace(margin=0.2, scale=16.0)
    shared = (margins[0], INPUT, teacher, margins[1], [DistillTerm(name=name, loss=loss, warmup_epochs=0)], 5)
    if head == "softmax":
        return DistillationObjective(backbone, SoftmaxHead(DIM, NUM_CLASSES), *shared)
    objective = ShardedDistillation(backbone, ShardedHead(DIM, NUM_CLASSES), *shared)
    objective.share_out_teacher()
    return objective


def build_trainer(folder: Path, objective: nn.Module, micro_batches: int) -> Trainer:
    return Trainer(
        objective,
        build_sgd(objective, lr=0.01),
        lambda step: 0.01,
        LoopSettings(
            total_steps=NUM_STEPS, steps_per_epoch=5, batch_size=BATCH_SIZE, micro_batches=micro_batches, log_every=1
        ),
        device=torch.device("cpu"),
        augment=Augment([Flip()], 3),
        run_log=RunLog(folder, 0),
        evaluate=lambda: ({}, None),
        save=lambda step, score: None,
        stop=SimpleNamespace(signal_number=0),
        guard=NonFiniteGuard(folder),
        watch=RankWatch(),
    )


def train(
    folder: Path, objective: nn.Module, dataset: RecordFile, micro_batches: int = 1
) -> tuple[dict[str, list[float]], dict[str, Tensor]]:
    """Every figure of ten steps, and the gradients of the first."""
    loop, first = build_trainer(folder, objective, micro_batches), {}
    step: Callable[[], Any] = loop.optimizer.step

    def keep_first() -> None:
        named = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
        first.update({} if first else {name: grad.clone() for name, grad in named.items()})
        step()

    loop.optimizer.step = keep_first
    with loop.run_log:
        loop.fit(reusing(raw_batches(dataset, micro_batches)), 0)
    names = ["loss/total", "loss/classification", *(f"loss/{name}" for name in _parts(objective))]
    return {name: read_metrics(folder / "metrics.jsonl", name)[1] for name in names}, first


def _parts(objective: nn.Module) -> list[str]:
    return [f"{term.name}/weighted" for term in getattr(objective, "terms", ())]


CASES = [("softmax", name) for name in LOSSES] + [("sharded", name) for name in ("gkd", "embedding", "rkd")]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize(("head", "name"), CASES)
def test_no_loss_can_tell_live_from_kept_embeddings(
    head: str, name: str, micro_batches: int, dataset: RecordFile, centres: ClassCentres, tmp_path: Path
) -> None:
    live = build_teacher(centres, batch_size=5)
    kept = build_teacher(centres, stored=centres.store)
    (losses, gradients), (due, due_gradients) = (
        train(tmp_path / way, build_objective(name, head, teacher), dataset, micro_batches)
        for way, teacher in (("live", live), ("kept", kept))
    )
    assert live.backbone.sizes == [4, 4, 4] * NUM_STEPS
    assert kept.backbone.sizes == []
    for figure, values in due.items():
        assert len(values) == NUM_STEPS
        assert losses[figure] == pytest.approx(values, rel=TOLERANCE), figure
    assert min(due[f"loss/{name}/weighted"]) > 0.01, "the term says nothing"
    assert set(gradients) == set(due_gradients)
    gaps = {
        key: float((grad - due_gradients[key]).norm() / due_gradients[key].norm()) for key, grad in gradients.items()
    }
    assert max(gaps.values()) < TOLERANCE, gaps
    assert max(gaps.values()) > 0, "both ways are one"


@pytest.mark.parametrize("head", ["softmax", "sharded"])
def test_looking_ahead_changes_no_bit_where_the_teachers_batches_are_the_students(
    head: str, dataset: RecordFile, centres: ClassCentres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = build_teacher(centres, batch_size=BATCH_SIZE // 2)
    found = train(tmp_path / "ahead", build_objective("gkd", head, ahead), dataset, 2)
    monkeypatch.setattr(Teacher, "look_ahead", lambda self, batches: None)
    due = train(tmp_path / "each", build_objective("gkd", head, build_teacher(centres)), dataset, 2)
    assert found[0] == due[0]
    assert found[1].keys() == due[1].keys()
    assert all(torch.equal(grad, due[1][name]) for name, grad in found[1].items())


def test_a_step_is_gathered_and_shown_before_it_is_computed(tmp_path: Path) -> None:
    told: list[str] = []

    class Watcher(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))
            self.step = 0

        def look_ahead(self, batches: list[Batch]) -> None:
            self.shown = [batch.images.clone() for batch in batches]
            told.append(f"ahead {self.step}: {[len(batch) for batch in batches]}")

        def forward(self, batch: Batch) -> Losses:
            assert torch.equal(self.shown.pop(0), batch.images)
            told.append(f"forward {self.step}")
            total = (self.weight * batch.images.float().mean()).sum()
            return Losses(total, {"toy": total})

    images = torch.randint(1, 255, (NUM_STEPS * 3, 4, 2, 2, 3), dtype=torch.uint8)
    ids = torch.arange(4)
    batches = [
        RawBatch(one, torch.zeros_like(ids), ids, number // 3, 0, number % 3) for number, one in enumerate(images)
    ]
    loop = build_trainer(tmp_path, Watcher(), 3)
    with loop.run_log:
        loop.fit(reusing(batches), 0)
    expected = [(f"ahead {step}: [4, 4, 4]", *[f"forward {step}"] * 3) for step in range(NUM_STEPS)]
    assert told == [line for lines in expected for line in lines]


def test_the_teachers_share_of_the_time_is_logged(dataset: RecordFile, centres: ClassCentres, tmp_path: Path) -> None:
    train(tmp_path / "taught", build_objective("kd", "softmax", build_teacher(centres)), dataset)
    steps, shares = read_metrics(tmp_path / "taught" / "metrics.jsonl", "time/teacher_share")
    assert steps == list(range(1, NUM_STEPS + 1))
    assert all(0 < share < 1 for share in shares)
    alone = ClassificationObjective(
        Net(2, DIM, is_student=True), SoftmaxHead(DIM, NUM_CLASSES), CosFace(scale=16.0), INPUT
    )
    train(tmp_path / "alone", alone, dataset)
    assert read_metrics(tmp_path / "alone" / "metrics.jsonl", "time/teacher_share") == ([], [])
