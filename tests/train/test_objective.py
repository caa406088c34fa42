"""What a batch becomes: cross entropy, distillation terms, their weights, and who gets a gradient."""

import math

import pytest
import torch
from torch import nn

from gkd import build
from gkd.build_teacher import TeacherParts
from gkd.core.config import load_config
from gkd.core.errors import ConfigError
from gkd.core.types import Batch, Losses, Views
from gkd.distill import (
    DecoupledKD,
    DistillLoss,
    EmbeddingDistillation,
    GroupedKD,
    KnowledgeDistillation,
    RelationalKD,
    TopK,
)
from gkd.heads import CosFace, ShardedHead, SoftmaxHead
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec, load_student, save_student
from gkd.schema import TrainRun
from gkd.train.objective import ClassificationObjective, DistillationObjective, DistillTerm
from gkd.train.optim import build_sgd
from gkd.train.sharded_objective import ShardedDistillation
from gkd.train.state import run_tensors
from tests.train.tiny_run import config, write_data

NUM_CLASSES, DIM, TEACHER_DIM = 7, 5, 8


class TinyBackbone(nn.Module):
    def __init__(self, seed, dim=DIM):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(3 * 4 * 4, dim)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, images):
        return self.norm(self.linear(images.flatten(1)))


def batch(num_images=6):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (num_images, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (num_images,), generator=generator)
    return Batch(images, labels, torch.arange(num_images), torch.zeros(num_images, dtype=torch.bool))


def teacher(dim=DIM):
    torch.manual_seed(9)
    return Teacher(TinyBackbone(1, dim), SoftmaxHead(dim, NUM_CLASSES), InputSpec())


def objective(*terms, steps_per_epoch=10, teacher=teacher):
    torch.manual_seed(4)
    backbone, head = TinyBackbone(2), SoftmaxHead(DIM, NUM_CLASSES)
    parts = (backbone, head, CosFace(scale=16.0), InputSpec())
    if not terms:
        return ClassificationObjective(*parts)
    return DistillationObjective(*parts, teacher(), CosFace(margin=0.2, scale=16.0), terms, steps_per_epoch)


def gkd_term(**changes):
    return DistillTerm(name="gkd", loss=GroupedKD(grouping=TopK(k=3)), **changes)


def embedding_term(teacher_dim=DIM, **changes):
    loss = EmbeddingDistillation()
    torch.manual_seed(6)
    loss.set_dims(DIM, teacher_dim)
    return DistillTerm(name="embedding", loss=loss, **changes)


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


def gradients_of(module, data):
    losses = module(data)
    losses.total.backward()
    return losses.total.detach(), [parameter.grad for parameter in module.parameters()]


def test_a_compiled_backbone_gives_the_same_losses_and_gradients(monkeypatch):
    torch.compiler.reset()
    monkeypatch.setattr(ClassificationObjective, "_compiler", "aot_eager")
    plain, compiled = objective(), objective()
    names = list(compiled.state_dict())
    compiled.compile_backbone()
    assert list(compiled.state_dict()) == names
    for number in (6, 5, 6):
        expected, found = (gradients_of(module, batch(number)) for module in (plain, compiled))
        torch.testing.assert_close(found, expected)
    assert compiled.compiled.is_compiled
    torch.testing.assert_close(compiled.backbone.state_dict(), plain.backbone.state_dict())
    torch.compiler.reset()


def test_a_backbone_that_cannot_be_compiled_trains_all_the_same(monkeypatch, caplog):
    torch.compiler.reset()

    def compiler(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(ClassificationObjective, "_compiler", staticmethod(compiler))
    module = objective()
    module.compile_backbone()
    expected, found = (gradients_of(one, batch()) for one in (objective(), module))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "the backbone cannot be compiled (" in caplog.text
    assert "Set train.compile=false" in caplog.text
    torch.compiler.reset()


def test_images_come_in_the_order_of_memory_that_is_asked_for():
    module, seen = objective(), []
    module.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for memory_format in (torch.channels_last, torch.contiguous_format):
        module.memory_format = memory_format
        module.embed(batch())
        assert seen[-1].is_contiguous(memory_format=memory_format)
    assert torch.equal(*seen)


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


class Spy(DistillLoss):
    """Keeps what it is given."""

    def __init__(self, *needs):
        super().__init__()
        self.needs = frozenset(needs)

    def forward(self, *given):
        self.given = given
        total = given[0].sum()
        return Losses(total, {"sum": total})


def shown(module, data):
    """Embeddings and cosines of student and teacher; batch norm must not move in between."""
    embeddings = module.backbone(InputSpec().convert(data.images))
    views = module.__dict__["teacher"](data)
    return embeddings, module.head.cosine(embeddings), views.embeddings, views.logits


def test_a_loss_gets_what_it_needs_students_first_logits_before_embeddings():
    data = batch()
    both, embeddings = Spy("embeddings", "logits"), Spy("embeddings")
    terms = [DistillTerm(name="both", loss=both, student_margin=False), DistillTerm(name="one", loss=embeddings)]
    module = objective(*terms, teacher=lambda: teacher(TEACHER_DIM)).eval()
    module(data)
    student, cosine, of_teacher, teacher_cosine = shown(module, data)
    assert len(both.given) == 5
    torch.testing.assert_close(both.given[0], 16.0 * cosine)
    torch.testing.assert_close(both.given[1], CosFace(margin=0.2, scale=16.0)(teacher_cosine, data.labels))
    for given in (both.given[2:], embeddings.given):
        torch.testing.assert_close(given[0], student)
        assert torch.equal(given[1], of_teacher)
        assert not given[1].requires_grad
        assert given[2] is data.labels
    assert of_teacher.shape == (6, TEACHER_DIM)


class Headless(nn.Module):
    """A teacher that shows embeddings only."""

    def forward(self, batch):
        return Views(torch.ones(len(batch), TEACHER_DIM))


@pytest.mark.parametrize("loss", [EmbeddingDistillation, RelationalKD])
def test_a_loss_on_embeddings_needs_no_teacher_logits_and_no_margin_on_them(loss):
    made = loss()
    made.set_dims(DIM, TEACHER_DIM)
    module = objective(DistillTerm(name="it", loss=made, warmup_epochs=0), teacher=Headless)

    def refuse(*_):
        raise AssertionError("nobody needs these logits")

    module.teacher_margin.forward = module.teacher_margin.plain = refuse
    losses = module(batch())
    losses.total.backward()
    assert losses.total > losses.parts["classification"]


@pytest.mark.parametrize("loss", [GroupedKD, KnowledgeDistillation, DecoupledKD])
def test_a_loss_on_logits_refuses_a_teacher_without_class_weights(loss):
    module = objective(DistillTerm(name="mine", loss=loss()), teacher=Headless)
    with pytest.raises(ConfigError, match="loss mine compares class logits and the teacher has no class weights; use"):
        module(batch())


def test_terms_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="must have different names, got gkd, gkd; rename one"):
        objective(gkd_term(), gkd_term())


def test_several_losses_add_up():
    terms = [
        gkd_term(warmup_epochs=0),
        embedding_term(TEACHER_DIM, weight=3.0, warmup_epochs=0),
        *(
            DistillTerm(name=name, loss=loss(), weight=0.5, warmup_epochs=0)
            for name, loss in (("kd", KnowledgeDistillation), ("dkd", DecoupledKD), ("rkd", RelationalKD))
        ),
    ]
    losses = objective(*terms, teacher=lambda: teacher(TEACHER_DIM))(batch())
    weighted = [part for name, part in losses.parts.items() if name.endswith("/weighted")]
    torch.testing.assert_close(losses.total, losses.parts["classification"] + sum(weighted))
    torch.testing.assert_close(losses.parts["embedding/weighted"], 3 * losses.parts["embedding/distance"])
    torch.testing.assert_close(losses.parts["kd/weighted"], 0.5 * losses.parts["kd/kl"])
    assert len(weighted) == 5
    assert {"dkd/target", "dkd/non_target", "rkd/distance", "rkd/angle"} <= set(losses.parts)


@pytest.mark.parametrize("step", [0, 20])
def test_a_projection_is_trained_and_kept_in_checkpoints_also_while_its_weight_is_0(step):
    module = objective(embedding_term(TEACHER_DIM), teacher=lambda: teacher(TEACHER_DIM))
    projection = module.terms[0].loss.projection.weight
    optimizer = build_sgd(module, lr=0.1)
    assert any(projection is parameter for group in optimizer.param_groups for parameter in group["params"])
    tensors = run_tensors(module, optimizer)
    name = "term_losses.embedding.projection.weight"
    assert tensors[f"model/{name}"].data_ptr() == projection.data_ptr()
    assert f"momentum/{name}" in tensors
    module.step = step
    module(batch()).total.backward()
    assert projection.grad is not None
    assert bool((projection.grad != 0).any()) is (step > 0)


@pytest.fixture
def run_config(tmp_path):
    write_data(tmp_path)
    settings = {"run": "t", "check_pairs": "p", "min_accuracy": 0.5, "min_train_rank1": 0.5}
    distill = [{"loss": name} for name in ("embedding", "rkd", "kd")]
    return load_config(config(tmp_path, distill=distill, teacher=settings), TrainRun)


def test_a_built_projection_fits_both_networks_leaves_the_start_alone_and_stays_out_of_student_pt(run_config, tmp_path):
    dataset = build.build_dataset(run_config)
    frozen = Teacher(TinyBackbone(1, TEACHER_DIM), SoftmaxHead(TEACHER_DIM, dataset.num_identities), InputSpec())
    frozen.backbone.input_size = (32, 32)
    torch.manual_seed(5)
    control = build.build_objective(run_config, dataset, None, 6)
    torch.manual_seed(5)
    module = build.build_objective(
        run_config, dataset, TeacherParts(frozen, CosFace(), network=None, class_weights="", input_check=None), 6
    )
    extra = set(module.state_dict()) - set(control.state_dict())
    assert extra == {"term_losses.embedding.projection.weight"}
    assert module.terms[0].loss.projection.weight.shape == (TEACHER_DIM, 16)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in control.state_dict().items())
    save_student(tmp_path / "student.pt", module.backbone, module.input_spec, {})
    assert set(load_student(tmp_path / "student.pt")[0].state_dict()) == set(control.backbone.state_dict())
    stored = torch.load(tmp_path / "student.pt", weights_only=True)
    assert "projection" not in str(stored.keys()) + str([list(v) for v in stored.values() if isinstance(v, dict)])


def test_a_distilled_step_shows_the_teacher_all_its_micro_batches():
    module, told = objective(gkd_term()), []
    module.__dict__["teacher"].look_ahead = told.append
    batches = [batch(3), batch(2)]
    module.look_ahead(batches)
    assert told == [batches]
    objective().look_ahead(batches)  # without a teacher there is nothing to do
    assert objective().take_teacher_seconds() is None
    assert module.take_teacher_seconds() == 0.0


@pytest.mark.parametrize("is_sharded", [False, True])
def test_the_student_goes_first_for_the_teacher_may_still_compute_beside_it(is_sharded):
    module, order = objective(gkd_term()), []
    if is_sharded:
        head, frozen = ShardedHead(DIM, NUM_CLASSES), module.__dict__["teacher"]
        parts = (module.backbone, head, CosFace(scale=16.0), InputSpec(), frozen, module.teacher_margin, module.terms)
        module = ShardedDistillation(*parts, 10)
        module.share_out_teacher()
    module.backbone.register_forward_hook(lambda *_: order.append("student"))
    module.__dict__["teacher"].register_forward_hook(lambda *_: order.append("teacher"))
    module(batch())
    assert order == ["student", "teacher"]


@pytest.mark.parametrize("is_sharded", [False, True])
def test_what_was_embedded_ahead_gives_the_same_losses(is_sharded):
    def losses(is_ahead):
        module, data = objective(embedding_term(), gkd_term(warmup_epochs=0)), batch()
        if is_sharded:
            torch.manual_seed(4)
            parts = (TinyBackbone(2), ShardedHead(DIM, NUM_CLASSES), CosFace(scale=16.0), InputSpec())
            shared = (module.__dict__["teacher"], module.teacher_margin, module.terms, 10)
            module = ShardedDistillation(*parts, *shared)
            module.share_out_teacher()
        if is_ahead:
            module.look_ahead([data])
        return module(data)

    ahead, alone = losses(True), losses(False)
    assert ahead.parts.keys() == alone.parts.keys()
    assert all(torch.equal(part, alone.parts[name]) for name, part in ahead.parts.items())
