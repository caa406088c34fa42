"""Starting from another run's weights: what is taken over, what is drawn anew, and that it pays."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gkd.core.class_shard import ClassShard
from gkd.core.errors import CheckpointError, ConfigError
from gkd.core.types import Batch
from gkd.evaluation import verify_pairs
from gkd.heads import CosFace, SoftmaxHead
from gkd.models import InputSpec, create_backbone, load_student, save_head, save_student
from gkd.train.batch_norm import keep_frozen
from gkd.train.fine_tune import start_from
from gkd.train.objective import ClassificationObjective
from gkd.train.optim import GroupRule, build_sgd

SIZE, DIM = 32, 16
NAMES = ("ann", "bob", "cem", "dan")


def objective(num_classes: int, seed: int, embedding_dim: int = DIM, name: str = "iresnet18", **spec: object):
    torch.manual_seed(seed)
    width = {"width_multiplier": 0.125} if name == "iresnet18" else {}
    backbone = create_backbone(name, embedding_dim=embedding_dim, input_size=(SIZE, SIZE), **width)
    head = SoftmaxHead(embedding_dim, num_classes)
    return ClassificationObjective(backbone, head, CosFace(margin=0.2, scale=16.0), InputSpec(**spec))


def write_run(folder: Path, trained: ClassificationObjective, names: tuple[str, ...] | None, data: str = "old") -> Path:
    """A run folder as training leaves it, with the weights of `trained`."""
    save_student(folder / "weights" / "student.pt", trained.backbone, trained.input_spec)
    meta = {"num_classes": len(trained.head.weight), "fingerprint": data, "identity_names": names and list(names)}
    save_head(folder / "weights" / "head.pt", trained.head.weight.detach(), meta)
    return folder


def start(new: ClassificationObjective, path: Path, names: tuple[str, ...] | None = None, **settings: object):
    """The lines of `start_from` and the head's weights before it."""
    before = new.head.weight.detach().clone()
    given = {"num_classes": len(before), "identity_names": names, "fingerprint": "new", **settings}
    return start_from(new, path, **given), before


def assert_same_backbone(new: ClassificationObjective, old: ClassificationObjective) -> None:
    state = old.backbone.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in new.backbone.state_dict().items())


@pytest.fixture(scope="module")
def old() -> ClassificationObjective:
    return objective(4, seed=1)


@pytest.fixture(scope="module")
def run(old, tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), old, NAMES)


@pytest.mark.parametrize("place", ["", "weights", "weights/student.pt", "weights/student.safetensors"])
def test_a_run_a_folder_and_a_file_fill_the_backbone(run, old, place):
    new = objective(3, seed=2)
    weight = new.backbone.conv1.weight
    lines, _ = start(new, run / place, ("x", "y", "z"))
    assert_same_backbone(new, old)
    assert new.backbone.conv1.weight is weight
    assert re.fullmatch(r"backbone: iresnet18 of width 8 \(\d+ tensors\) from .*student\.(pt|safetensors)", lines[0])
    assert len(lines) == 2


def test_the_same_data_keeps_the_whole_head(run, old):
    new = objective(4, seed=2)
    lines, _ = start(new, run, fingerprint="old")  # without names too
    assert torch.equal(new.head.weight, old.head.weight)
    assert lines[1] == f"head: all 4 classes from {run}/weights/head.pt, trained on the same data"


def test_rows_follow_their_names(run, old):
    new = objective(3, seed=2)
    lines, _ = start(new, run, ("dan", "ann", "bob"))
    assert torch.equal(new.head.weight, old.head.weight[[3, 0, 1]])
    assert lines[1] == (f"head: all 3 classes, which have the name of one of the 4 identities of {run}/weights/head.pt")


def test_rows_of_new_names_are_drawn_anew(run, old):
    new = objective(5, seed=2)
    weight = new.head.weight
    lines, before = start(new, run, ("eve", "cem", "fay", "ann", "gus"))
    assert new.head.weight is weight
    assert weight.requires_grad
    assert torch.equal(weight[[1, 3]], old.head.weight[[2, 0]])
    assert torch.equal(weight[[0, 2, 4]], before[[0, 2, 4]])
    assert lines[1] == (
        f"head: 2 of 5 classes, those that have the name of one of the 4 identities of {run}/weights/head.pt; "
        "the other 3 are drawn anew"
    )


@pytest.mark.parametrize(
    ("names", "fingerprint"),
    [
        (("eve", "cem", "fay", "ann", "gus"), "new"),
        (("dan", "cem", "bob", "ann", "gus"), "new"),
        (("ann", "fay", "gus", "hal", "ian"), "new"),  # only the first rank has one of them
        (("eve", "fay", "gus", "hal", "ian"), "new"),
        (NAMES, "old"),
        (("dan", "cem", "bob", "ann"), "new"),
    ],
)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_each_rank_takes_its_own_rows_and_all_say_the_same(run, names, fingerprint, num_ranks):
    num_classes = len(names)
    whole = objective(num_classes, seed=2)
    wanted_lines, drawn = start(whole, run, names, fingerprint=fingerprint)
    rows = []
    for rank in range(num_ranks):
        shard = ClassShard.of_rank(num_classes, rank, num_ranks)
        new = objective(num_classes, seed=2)
        new.head.weight = torch.nn.Parameter(drawn[shard.start : shard.stop].clone())
        new.class_shards = {"head.weight": shard}
        lines, _ = start(new, run, names, fingerprint=fingerprint, num_classes=num_classes)
        assert lines == wanted_lines
        rows.append(new.head.weight.detach())
    assert torch.equal(torch.cat(rows), whole.head.weight)


def test_rows_that_are_not_those_of_the_shard_are_a_mistake(run):
    new = objective(3, seed=2)
    new.class_shards = {"head.weight": ClassShard.of_rank(5, 1, 2)}
    with pytest.raises(AssertionError):
        start(new, run, NAMES, num_classes=5)


def test_a_name_that_is_twice_matches_nothing(tmp_path, old):
    folder = write_run(tmp_path, old, ("ann", "bob", "ann", "dan"))
    new = objective(4, seed=2)
    _, before = start(new, folder, ("ann", "bob", "dan", "dan"))
    assert torch.equal(new.head.weight[1], old.head.weight[1])
    assert torch.equal(new.head.weight[[0, 2, 3]], before[[0, 2, 3]])


@pytest.mark.parametrize(
    ("saved", "names", "reason"),
    [
        (NAMES, ("eve", "fay", "gus"), "none of the 4 identities of {head} has the name of one of them"),
        (NAMES, None, "{head} has 4 classes of other data, and without identity names none can be matched"),
        (None, ("ann", "bob", "cem"), "{head} has 4 classes of other data, and without identity names none can"),
    ],
)
def test_another_set_of_classes_gets_a_new_head(tmp_path, old, saved, names, reason):
    folder = write_run(tmp_path, old, saved)
    new = objective(3, seed=2)
    lines, before = start(new, folder, names)
    assert torch.equal(new.head.weight, before)
    wanted = "head: drawn anew for 3 classes; " + reason.format(head=folder / "weights" / "head.pt")
    assert lines[1].startswith(wanted)
    assert_same_backbone(new, old)


def test_as_many_classes_of_other_data_are_other_classes(tmp_path, old):
    new = objective(4, seed=2)
    lines, before = start(new, write_run(tmp_path, old, None))
    assert torch.equal(new.head.weight, before)
    assert lines[1].startswith("head: drawn anew for 4 classes; ")


def test_the_head_can_be_left_behind(run):
    new = objective(4, seed=2)
    lines, before = start(new, run, NAMES, fingerprint="old", is_head_kept=False)
    assert torch.equal(new.head.weight, before)
    assert lines[1] == "head: drawn anew for 4 classes, as asked"


def test_a_backbone_alone_is_enough(tmp_path, run, old):
    shutil.copy(run / "weights" / "student.pt", tmp_path / "mine.pt")
    new = objective(4, seed=2)
    lines, before = start(new, tmp_path / "mine.pt", NAMES)
    assert_same_backbone(new, old)
    assert torch.equal(new.head.weight, before)
    assert lines[1] == f"head: drawn anew for 4 classes; there is no {tmp_path}/head.pt"


def test_a_head_of_the_other_format_serves_as_well(tmp_path, run, old):
    for name in ("student.safetensors", "head.safetensors"):
        shutil.copy(run / "weights" / name, tmp_path / name)
    new = objective(4, seed=2)
    start(new, tmp_path, NAMES)
    assert_same_backbone(new, old)
    assert torch.equal(new.head.weight, old.head.weight)


def test_a_plain_state_dict_says_nothing_of_its_input(tmp_path, old):
    torch.save(old.backbone.state_dict(), tmp_path / "plain.pth")
    new = objective(4, seed=2, color="bgr")
    lines, _ = start(new, tmp_path / "plain.pth")
    assert_same_backbone(new, old)
    assert lines[1] == (
        "input: the file does not say what it was trained with; this run has bgr, mean 127.5, std 127.5"
    )


def test_another_input_conversion_is_refused(run):
    with pytest.raises(ConfigError) as caught:
        start(objective(4, seed=2, color="bgr"), run)
    assert str(caught.value) == (
        f"{run}/weights/student.pt: was trained with the input rgb, mean 127.5, std 127.5, and this run has bgr, mean "
        "127.5, std 127.5; set `input` to what the weights were trained with"
    )


def test_another_family_is_refused(run):
    with pytest.raises(CheckpointError, match=r"holds iresnet18 of width 8 .* which does not fit mobilefacenet"):
        start(objective(4, seed=2, name="mobilefacenet"), run)


def test_another_embedding_is_refused(run):
    with pytest.raises(CheckpointError, match=r"fc\.weight has shape \[16, \d+\], expected \[8, \d+\]"):
        start(objective(4, seed=2, embedding_dim=8), run)


def test_a_head_of_another_backbone_is_refused(tmp_path, run):
    shutil.copytree(run / "weights", tmp_path / "weights")
    save_head(tmp_path / "weights" / "head.pt", torch.ones(4, 8), {"identity_names": list(NAMES)})
    with pytest.raises(CheckpointError, match="its class weights have 8 dimensions and this backbone's embeddings 16"):
        start(objective(4, seed=2), tmp_path, NAMES)


def test_a_damaged_head_is_refused(tmp_path, run):
    shutil.copytree(run / "weights", tmp_path / "weights")
    (tmp_path / "weights" / "head.pt").write_bytes(b"\x80nothing")
    with pytest.raises(CheckpointError, match=r"head\.pt: damaged"):
        start(objective(4, seed=2), tmp_path)


def test_a_folder_without_weights_says_what_it_lacks(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        start(objective(4, seed=2), tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds none of weights/student.pt, student.pt, weights/student.safetensors, student.safetensors; "
        "give the folder of a run that has saved weights, or a weight file"
    )


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pt: no such file"):
        start(objective(4, seed=2), tmp_path / "gone.pt")


def faces(identities: range, images_each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth coloured patterns, one an identity, cut, lit and disturbed differently in every image."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for identity in identities:
        coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(identity)) * 255
        pattern = F.interpolate(coarse, size=(SIZE + 8, SIZE + 8), mode="bicubic")[0]
        for _ in range(images_each):
            y, x = torch.randint(0, 9, (2,), generator=generator).tolist()
            gain = 0.5 + torch.rand(3, 1, 1, generator=generator)
            noise = torch.randn(3, SIZE, SIZE, generator=generator) * 40
            pixels = (pattern[:, y : y + SIZE, x : x + SIZE] - 127) * gain + 127 + noise
            images.append(pixels.clamp(0, 255).to(torch.uint8))
    return torch.stack(images), torch.arange(len(identities)).repeat_interleave(images_each)


def train(trained, images: Tensor, labels: Tensor, num_steps: int, lr: float, groups=()) -> float:
    """Train for `num_steps` and return the mean loss of the last four."""
    optimizer = build_sgd(trained, lr=lr, groups=groups)
    trained.train()
    keep_frozen(trained)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(num_steps):
        chosen = torch.randint(0, len(images), (24,), generator=generator)
        total = trained(Batch(images[chosen], labels[chosen], chosen, torch.zeros(24, dtype=torch.bool))).total
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    return sum(losses[-4:]) / 4


@torch.no_grad()
def area_under_curve(trained, images: Tensor, labels: Tensor) -> float:
    """Of telling pairs of one identity from pairs of two."""
    trained.eval()
    embeddings = F.normalize(trained.backbone(trained.input_spec.convert(images))).numpy()
    left, right = np.triu_indices(len(labels), 1)
    is_same = (labels[left] == labels[right]).numpy()
    other = np.flatnonzero(~is_same)[:: max(1, int((~is_same).sum() / is_same.sum()))][: int(is_same.sum())]
    kept = np.concatenate([np.flatnonzero(is_same), other])
    return verify_pairs(embeddings[left[kept]], embeddings[right[kept]], is_same[kept]).auc


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """A run on 48 identities."""
    trained = objective(48, seed=0)
    train(trained, *faces(range(100, 148), 8, seed=0), num_steps=80, lr=0.1)
    return write_run(tmp_path_factory.mktemp("pretrained"), trained, tuple(f"p{index}" for index in range(48)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_fine_tuning_learns_twelve_new_identities_faster_and_better(pretrained, seed):
    """In 12 steps, from the same images; verified on identities that neither run has seen."""
    data = faces(range(200 + 20 * seed, 212 + 20 * seed), 6, seed)
    unseen = faces(range(300 + 30 * seed, 330 + 30 * seed), 5, seed)
    scratch, tuned = objective(12, seed), objective(12, seed)
    start(tuned, pretrained, tuple(f"q{index}" for index in range(12)))
    assert torch.equal(tuned.head.weight, scratch.head.weight)
    scratch_loss, tuned_loss = (train(each, *data, num_steps=12, lr=0.05) for each in (scratch, tuned))
    assert tuned_loss < 0.7 * scratch_loss
    assert area_under_curve(tuned, *unseen) > area_under_curve(scratch, *unseen) + 0.02


def test_only_the_head_learns_where_the_backbone_is_frozen(pretrained):
    new = objective(12, seed=1)
    start(new, pretrained)
    data = faces(range(220, 232), 6, seed=1)
    rules = [GroupRule("backbone.*", frozen=True), GroupRule("*", 10.0)]
    first = train(new, *data, num_steps=4, lr=0.05, groups=rules)
    assert train(new, *data, num_steps=20, lr=0.05, groups=rules) < 0.5 * first
    backbone, _, _ = load_student(pretrained / "weights" / "student.pt")
    state = backbone.state_dict()
    # Its batch norms have kept their statistics too.
    assert all(torch.equal(tensor, state[name]) for name, tensor in new.backbone.state_dict().items())
