"""What a batch becomes: cross entropy, distillation terms, their weights, and who gets a gradient."""

import math

import pytest
import torch
from torch import nn

from gkd.core.types import Batch
from gkd.distill import GroupedKD, TopK
from gkd.heads import CosFace, SoftmaxHead
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm

NUM_CLASSES, DIM = 7, 5


class TinyBackbone(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3 * 4 * 4, DIM)
        self.norm = nn.BatchNorm1d(DIM)

    def forward(self, images):
        return self.norm(self.linear(images.flatten(1)))


def batch(num_images=6):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (num_images, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (num_images,), generator=generator)
    return Batch(images, labels, torch.arange(num_images), torch.zeros(num_images, dtype=torch.bool))


def teacher():
    torch.manual_seed(9)
    return Teacher(TinyBackbone(1), SoftmaxHead(DIM, NUM_CLASSES), InputSpec())


def objective(*terms, steps_per_epoch=10):
    torch.manual_seed(4)
    backbone, head = TinyBackbone(2), SoftmaxHead(DIM, NUM_CLASSES)
    parts = (backbone, head, CosFace(scale=16.0), InputSpec())
    if not terms:
        return ClassificationObjective(*parts)
    return DistillationObjective(*parts, teacher(), CosFace(margin=0.2, scale=16.0), terms, steps_per_epoch)


def gkd_term(**changes):
    return DistillTerm(name="gkd", loss=GroupedKD(grouping=TopK(k=3)), **changes)


def test_classification_is_the_cross_entropy_of_margin_logits_written_out():
    module, data = objective(), batch()
    losses = module(data)
    embeddings = module.backbone(InputSpec().convert(data.images)).detach().double()
    weights = module.head.weight.detach().double()
    total = 0.0
    for embedding, label in zip(embeddings, data.labels.tolist(), strict=True):
        cosine = [float(embedding @ w / embedding.norm() / w.norm()) for w in weights]
        logits = [16.0 * (c - 0.4 * (j == label)) for j, c in enumerate(cosine)]
        total += math.log(sum(math.exp(z) for z in logits)) - logits[label]
    assert losses.total.item() == pytest.approx(total / len(data), rel=1e-5)
    assert losses.parts["classification"] is losses.total


def test_total_is_classification_plus_the_weighted_term():
    module = objective(gkd_term(weight=0.5, warmup_epochs=4), steps_per_epoch=10)
    module.step = 25  # epoch 2 of 4: half of the weight
    losses = module(batch())
    parts = losses.parts
    expected = parts["classification"] + 0.25 * (8 * parts["gkd/primary"] + parts["gkd/binary"])
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(parts["gkd/weighted"], losses.total - parts["classification"])
    assert losses.stats["gkd/weight"].item() == 0.25


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.0), (9, 0.0), (10, 0.1), (19, 0.1), (99, 0.9), (100, 1.0), (250, 1.0)]
)
def test_warm_up_counts_whole_epochs_from_zero(step, weight):
    assert gkd_term(warmup_epochs=10).weight_at(step // 10) == pytest.approx(weight)


def test_without_warm_up_the_weight_is_whole_at_once():
    assert gkd_term(weight=3.0, warmup_epochs=0).weight_at(0) == 3.0


@pytest.mark.parametrize("student_margin", [True, False])
@pytest.mark.parametrize("teacher_margin", [True, False])
def test_each_side_keeps_or_drops_its_margin(student_margin, teacher_margin):
    seen = {}

    class Spy(nn.Module):
        needs = frozenset({"logits"})

        def forward(self, student_logits, teacher_logits, labels):
            seen.update(student=student_logits, teacher=teacher_logits)
            return GroupedKD(grouping=TopK(k=3))(student_logits, teacher_logits, labels)

    term = DistillTerm(name="spy", loss=Spy(), student_margin=student_margin, teacher_margin=teacher_margin)
    module, data = objective(term).eval(), batch()  # eval: batch norm must not move between the two passes
    module(data)
    student_cosine = module.head.cosine(module.backbone(InputSpec().convert(data.images)))
    teacher_cosine = module.__dict__["teacher"](data).logits
    for side, cosine, has_margin, margin in (
        ("student", student_cosine, student_margin, 0.4),
        ("teacher", teacher_cosine, teacher_margin, 0.2),
    ):
        expected = 16.0 * cosine.detach()
        expected[torch.arange(len(data)), data.labels] -= 16.0 * margin * has_margin
        torch.testing.assert_close(seen[side].detach(), expected)


def test_the_teacher_stays_out_of_parameters_state_and_modes():
    module = objective(gkd_term())
    assert not any("teacher" in name for name, _ in module.named_parameters())
    assert not any("teacher" in name for name in module.state_dict())
    module.train()
    frozen = module.__dict__["teacher"]
    assert not any(child.training for child in frozen.modules())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    module(batch()).total.backward()
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())


def test_a_teacher_cannot_be_put_in_training_mode():
    frozen = teacher()
    frozen.train()
    assert not frozen.backbone.norm.training


def test_every_trainable_parameter_gets_a_gradient():
    module = objective(gkd_term(warmup_epochs=0))
    module(batch()).total.backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
