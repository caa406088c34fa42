"""Figures of single images: right beside the means, and shown only when it is their turn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from gkd.core.types import Batch, Losses
from gkd.distill import LOSSES, CumulativeMass, DecoupledKD, GroupedKD, TopK
from gkd.heads import HEADS, CosFace
from gkd.models import InputSpec
from gkd.train import sample_view
from gkd.train.metrics import RunLog
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.sample_view import SampleView
from gkd.train.sharded_objective import ShardedClassification
from tests.train.test_board import board

NUM_IMAGES, NUM_CLASSES = 7, 11


def batch_of(start=0, size=NUM_IMAGES, side=4):
    generator = torch.Generator().manual_seed(start)
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    sample_ids = torch.arange(100 + start, 100 + start + size)
    return Batch(images, sample_ids % NUM_CLASSES, sample_ids, torch.zeros(size, dtype=torch.bool))


def losses_of(cosines, **more):
    total = torch.tensor(0.0)
    samples = {"target_cosine": torch.tensor(cosines), **{name: torch.tensor(each) for name, each in more.items()}}
    return Losses(total, {"classification": total}, {}, samples)


class Flat(nn.Module):
    """A linear backbone."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 8)

    def forward(self, images):
        return self.linear(images.flatten(1))


@pytest.mark.parametrize("name", ["softmax", "sharded", "partial_fc"])
def test_every_head_tells_the_target_cosine_of_each_image(name):
    torch.manual_seed(0)
    head = HEADS[name](8, NUM_CLASSES)
    kind = ClassificationObjective if name == "softmax" else ShardedClassification
    objective = kind(Flat(), head, CosFace(), InputSpec())
    batch = batch_of()
    losses = objective(batch)
    embeddings = objective.embed(batch)
    for index in range(NUM_IMAGES):
        weight = head.weight[batch.labels[index]]
        cosine = embeddings[index] @ weight / embeddings[index].norm() / weight.norm()
        assert losses.samples["target_cosine"][index].item() == pytest.approx(cosine.item(), abs=1e-5)
    assert losses.samples["target_cosine"].mean().item() == pytest.approx(losses.stats["target_cosine"].item())
    assert not losses.samples["target_cosine"].requires_grad


def reference(student, teacher, labels, k, temperature):
    """Size and masses of Primary of each image, by its definition."""
    found = []
    for row in range(len(labels)):
        others = [c for c in torch.argsort(student[row], descending=True, stable=True).tolist() if c != labels[row]]
        primary = [int(labels[row]), *others[: k - 1]]
        masses = [torch.softmax(side[row] / temperature, 0)[primary].sum().item() for side in (student, teacher)]
        found.append((len(primary), *masses))
    return np.array(found).T


@pytest.mark.parametrize("num_classes", [11, 9000])  # short rows, and long ones that go another way
def test_grouped_kd_tells_group_and_masses_of_each_image(num_classes):
    torch.manual_seed(0)
    student = torch.randn(NUM_IMAGES, num_classes) * 5
    teacher = torch.randn(NUM_IMAGES, num_classes) * 5
    labels = torch.arange(NUM_IMAGES)
    losses = GroupedKD(temperature=2.0, grouping=TopK(k=4))(student.requires_grad_(), teacher, labels)
    names = ("group_size", "student_primary_mass", "teacher_primary_mass")
    found = np.stack([losses.samples[name].double().numpy() for name in names])
    np.testing.assert_allclose(found, reference(student.detach().double(), teacher.double(), labels, 4, 2.0), rtol=1e-5)
    for name in names:
        assert losses.samples[name].double().mean().item() == pytest.approx(losses.stats[name].item())
        assert not losses.samples[name].requires_grad


def test_each_image_has_a_group_of_its_own_where_the_scope_is_the_sample():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, NUM_IMAGES, NUM_CLASSES) * 2
    grouping = CumulativeMass(threshold=0.8, scope="sample")
    losses = GroupedKD(grouping=grouping)(student, teacher, torch.arange(NUM_IMAGES))
    sizes = grouping(student, teacher, torch.arange(NUM_IMAGES)).sum(dim=1)
    assert losses.samples["group_size"].tolist() == sizes.tolist()
    assert len(set(sizes.tolist())) > 1


def test_decoupled_kd_tells_the_mass_of_each_target():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, NUM_IMAGES, NUM_CLASSES)
    labels = torch.arange(NUM_IMAGES)
    samples = DecoupledKD(temperature=3.0)(student, teacher, labels).samples
    for side, logits in (("student", student), ("teacher", teacher)):
        mass = torch.softmax(logits / 3.0, 1)[labels, labels]
        torch.testing.assert_close(samples[f"{side}_target_mass"].float(), mass)


def test_terms_are_told_apart_and_terms_without_figures_are_left_out():
    torch.manual_seed(0)
    backbone, head = Flat(), HEADS["softmax"](8, NUM_CLASSES)
    teacher = ClassificationObjective(Flat(), HEADS["softmax"](8, NUM_CLASSES), CosFace(), InputSpec())
    terms = [
        DistillTerm("gkd", GroupedKD(grouping=TopK(k=2)), warmup_epochs=0),
        DistillTerm("kd", LOSSES["kd"](), warmup_epochs=0),
    ]
    views = lambda batch: teacher.classify(batch)[0]  # noqa: E731 - as short as the network it stands for
    objective = DistillationObjective(backbone, head, CosFace(), InputSpec(), views, CosFace(), terms, 1)
    assert set(objective(batch_of()).samples) == {
        "target_cosine",
        "gkd/group_size",
        "gkd/student_primary_mass",
        "gkd/teacher_primary_mass",
    }


def view_of(folder, histograms_every=None, images_every=None, num_images=3):
    log = RunLog(folder, 0)
    return SampleView(log, histograms_every=histograms_every, images_every=images_every, num_images=num_images)


def test_histograms_hold_all_micro_batches(tmp_path):
    view = view_of(tmp_path, histograms_every=2)
    seen = [losses_of([0.1, 0.2], **{"gkd/group_size": [3, 3]}), losses_of([0.4], **{"gkd/group_size": [3]})]
    for done in range(1, 5):
        view.show(done, seen, [batch_of(size=2), batch_of(2, size=1)])
    found = board(tmp_path)
    assert set(found.Tags()["histograms"]) == {"samples/target_cosine", "samples/gkd/group_size"}
    points = found.Histograms("samples/target_cosine")
    assert [point.step for point in points] == [2, 4]
    value = points[0].histogram_value
    assert (value.num, value.min, value.max) == (3, pytest.approx(0.1), pytest.approx(0.4))
    assert found.Tags()["images"] == []


def test_nothing_is_looked_at_on_other_steps(tmp_path):
    class Untouchable(list):
        def __getitem__(self, index):
            raise AssertionError("looked at")

        __iter__ = __len__ = __getitem__

    view = view_of(tmp_path, histograms_every=3, images_every=5)
    for done in (1, 2, 4, 7, 8):
        view.show(done, Untouchable(), Untouchable())
    with pytest.raises(AssertionError, match="looked at"):
        view.show(9, Untouchable(), Untouchable())
    view_of(tmp_path).show(15, Untouchable(), Untouchable())


def test_pictures_show_the_first_and_the_hardest_images_with_their_names(tmp_path, monkeypatch):
    drawn = []
    original = sample_view.picture_of
    monkeypatch.setattr(
        sample_view,
        "picture_of",
        lambda images, captions: (drawn.append((images, captions)), original(images, captions))[1],
    )
    batches = [batch_of(0, 3), batch_of(3, 2)]
    cosines = [[0.5, 0.1, 0.4], [-0.2, 0.3]]
    view_of(tmp_path, images_every=1).show(6, [losses_of(each) for each in cosines], batches)
    (first, first_words), (hardest, hardest_words) = drawn
    assert first_words[0] == ["id 100", "label 1", "cosine 0.500"]
    assert [words[0] for words in first_words] == ["id 100", "id 101", "id 102"]
    assert [words[0] for words in hardest_words] == ["id 103", "id 101", "id 104"]
    assert hardest_words[0] == ["id 103", "label 4", "cosine -0.200"]
    wanted = [batches[0].images[index] for index in range(3)]
    for image, expected in zip(first, wanted, strict=True):
        np.testing.assert_array_equal(image, expected.permute(1, 2, 0).numpy())
    wanted = [batches[1].images[0], batches[0].images[1], batches[1].images[1]]
    for image, expected in zip(hardest, wanted, strict=True):
        np.testing.assert_array_equal(image, expected.permute(1, 2, 0).numpy())
    found = board(tmp_path)
    assert set(found.Tags()["images"]) == {"images/augmented", "images/hardest"}
    assert found.Tags()["histograms"] == []
    (point,) = found.Images("images/hardest")
    assert point.step == 6
    picture = cv2.imdecode(np.frombuffer(point.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (point.height, point.width, 3)


def test_an_objective_without_figures_still_shows_its_images(tmp_path):
    total = torch.tensor(0.0)
    view_of(tmp_path, histograms_every=1, images_every=1).show(1, [Losses(total, {})], [batch_of()])
    assert board(tmp_path).Tags()["images"] == ["images/augmented"]


def test_other_ranks_show_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("gkd.core.distributed.rank", lambda: 1)
    view = view_of(tmp_path, histograms_every=1, images_every=1)
    view.show(1, [losses_of([0.5])], [batch_of(size=1)])
    assert not list(tmp_path.iterdir())
