"""Two processes equal one with the whole batch: the grouping of batch scope, and the losses that look at single images.

Relations among images are those of one rank, so RelationalKD is the one that differs.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gkd.core.class_shard import ClassShard
from gkd.core.distributed import end_process
from gkd.core.types import Batch
from gkd.distill import LOSSES, CumulativeMass, GroupedKD
from gkd.heads import CosFace, SoftmaxHead
from gkd.inference.teacher import Teacher
from gkd.models import InputSpec
from gkd.train.objective import DistillationObjective, DistillTerm

SHARES = (slice(0, 3), slice(3, 8))  # uneven, as the last batch of an epoch can be


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 8, 30, generator=generator) * 2).unbind()
    student[3:] *= 3  # the ranks alone would choose different K
    return student.contiguous(), teacher.contiguous(), torch.randint(0, 30, (8,), generator=generator)


def grouping_of(rank: int) -> dict[str, Tensor]:
    share = [tensor[SHARES[rank]] for tensor in batch()]
    student = share[0].clone().requires_grad_()
    losses = GroupedKD()(student, *share[1:])
    losses.total.backward()
    assert student.grad is not None
    chunked = share[0].clone().requires_grad_()
    # The way of CUDA, where the classes are whole on every rank and the images are not.
    GroupedKD()(chunked, *share[1:], shard=ClassShard(30, 0, 30)).total.backward()
    assert chunked.grad is not None
    found = {"mask": CumulativeMass()(*share), "total": losses.total.detach(), "grad": student.grad}
    return found | {"chunked": chunked.grad}


def linear_backbone(seed: int, dim: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, dim))


def images(share: slice) -> Batch:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 7, (8,), generator=generator)
    return Batch(pixels[share], labels[share], torch.arange(8)[share], torch.zeros(8, dtype=torch.bool)[share])


def distilling(name: str) -> DistillationObjective:
    """A student of 5 numbers and a teacher of 9, so that the embedding loss has a projection."""
    teacher = Teacher(linear_backbone(1, 9), SoftmaxHead(9, 7), InputSpec())
    backbone, head, loss = linear_backbone(2, 5), SoftmaxHead(5, 7), LOSSES[name]()
    loss.set_dims(5, 9)
    term = DistillTerm(name=name, loss=loss, warmup_epochs=0)
    margins = CosFace(scale=16.0), CosFace(margin=0.2, scale=16.0)
    return DistillationObjective(backbone, head, margins[0], InputSpec(), teacher, margins[1], [term], 10)


def gradients(objective: DistillationObjective) -> dict[str, Tensor]:
    return {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}


def gradients_of_rank(name: str, rank: int) -> dict[str, Tensor]:
    objective, given = distilling(name), images(SHARES[rank])
    model = DistributedDataParallel(objective)  # a name, or it would be gone before the way back
    losses = model(given)
    torch.autograd.backward(losses.total * (len(given) * 2 / 8))  # the trainer's share
    return gradients(objective)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    saved = {name: gradients_of_rank(name, rank) for name in LOSSES}
    torch.save({"grouping": grouping_of(rank), **saved}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two ranks found."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(one_rank, (str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_equal_one(ranks: list[dict[str, dict[str, Tensor]]]) -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    losses = GroupedKD()(student, teacher, labels)
    losses.total.backward()
    mask = CumulativeMass()(student, teacher, labels)
    alone = [CumulativeMass()(*(tensor[share] for tensor in batch())).sum(dim=1)[0] for share in SHARES]
    assert int(alone[0]) != int(alone[1]) != int(mask.sum(dim=1)[0]), "the case under test does not arise"

    found = [rank["grouping"] for rank in ranks]
    assert torch.equal(torch.cat([rank["mask"] for rank in found]), mask)
    sizes = torch.tensor([3, 5])
    mean = sum(rank["total"] * size for rank, size in zip(found, sizes, strict=True)) / 8
    torch.testing.assert_close(mean, losses.total.detach())
    gradient = torch.cat([rank["grad"] * size / 8 for rank, size in zip(found, sizes, strict=True)])
    torch.testing.assert_close(gradient, student.grad)
    chunked = torch.cat([rank["chunked"] * size / 8 for rank, size in zip(found, sizes, strict=True)])
    torch.testing.assert_close(chunked, student.grad)


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_have_the_gradients_of_one_but_for_relations(
    name: str, ranks: list[dict[str, dict[str, Tensor]]]
) -> None:
    objective = distilling(name)
    objective(images(slice(0, 8))).total.backward()
    expected = gradients(objective)
    assert ("term_losses.embedding.projection.weight" in expected) is (name == "embedding")
    for found in (rank[name] for rank in ranks):
        assert set(found) == set(expected)
        gaps = [float((found[key] - due).norm() / due.norm()) for key, due in expected.items()]
        assert (max(gaps) < 1e-6) is (name != "rkd"), gaps
