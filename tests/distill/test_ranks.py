"""Batch scope over two processes equals one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from gkd.distill import CumulativeMass, GroupedKD

SHARES = (slice(0, 3), slice(3, 8))  # uneven, as the last batch of an epoch can be


def batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 8, 30, generator=generator) * 2).unbind()
    student[3:] *= 3  # the ranks alone would choose different K
    return student.contiguous(), teacher.contiguous(), torch.randint(0, 30, (8,), generator=generator)


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/store", 2), rank=rank, world_size=2)
    share = [tensor[SHARES[rank]] for tensor in batch()]
    student = share[0].clone().requires_grad_()
    losses = GroupedKD()(student, *share[1:])
    losses.total.backward()
    mask = CumulativeMass()(*share)
    torch.save({"mask": mask, "total": losses.total.detach(), "grad": student.grad}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path: Path) -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    losses = GroupedKD()(student, teacher, labels)
    losses.total.backward()
    mask = CumulativeMass()(student, teacher, labels)
    alone = [CumulativeMass()(*(tensor[share] for tensor in batch())).sum(dim=1)[0] for share in SHARES]
    assert int(alone[0]) != int(alone[1]) != int(mask.sum(dim=1)[0]), "the case under test does not arise"

    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(torch.cat([rank["mask"] for rank in ranks]), mask)
    sizes = torch.tensor([3, 5])
    mean = sum(rank["total"] * size for rank, size in zip(ranks, sizes, strict=True)) / 8
    torch.testing.assert_close(mean, losses.total.detach())
    gradient = torch.cat([rank["grad"] * size / 8 for rank, size in zip(ranks, sizes, strict=True)])
    torch.testing.assert_close(gradient, student.grad)
