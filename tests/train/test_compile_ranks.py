"""A compiled backbone in data-parallel training: the gradients of the plain one, on every rank."""

from __future__ import annotations

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gkd.core.compiling import CompiledFunction
from gkd.core.distributed import end_process


class Student(nn.Module):
    """Calls its layers as they are, or compiled."""

    def __init__(self, *, is_compiled: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten())
        self.__dict__["function"] = self.layers
        if is_compiled:
            self.__dict__["function"] = CompiledFunction(
                self.layers, "the backbone", "train.compile", "aot_eager", trained=self.layers
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.function(images)
        return outputs


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=120))
    students = [Student(is_compiled=is_compiled) for is_compiled in (True, False)]
    models = [DistributedDataParallel(student, broadcast_buffers=False) for student in students]
    for step in range(2):
        # The ranks' shares differ, and each gets the other size in the second step, so that both compile again.
        images = torch.randn(2 + (rank + step) % 2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank))
        for model in models:
            model(images).square().sum().backward()
        torch.testing.assert_close(*[dict(student.named_buffers()) for student in students])
        for ours, theirs in zip(*(list(student.parameters()) for student in students), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)
    assert students[0].function.is_compiled
    dist.barrier()
    end_process(0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_ranks_compile_and_agree(tmp_path):
    mp.spawn(one_rank, (str(tmp_path),), nprocs=2)
