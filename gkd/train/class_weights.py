"""Class weights that are split over the ranks, as the checkpoints see them: one tensor of all C classes.

C classes in all, K classes on this rank, D embedding dimension.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from gkd.core.class_shard import ClassShard
from gkd.core.errors import CheckpointError
from gkd.train.checkpoint_marker import verify
from gkd.train.checkpoint_metadata import StoredTensor, read_stored_tensors
from gkd.train.checkpoint_tensors import read_chunk


def class_shards(objective: nn.Module) -> dict[str, ClassShard]:
    """Which parameters of `objective` hold only this rank's classes, by their names; none where it does not say."""
    shards: dict[str, ClassShard] = getattr(objective, "class_shards", {})
    return shards


def sharded_parameters(objective: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are this rank's classes alone: what `clip_gradients` takes as `sharded`."""
    shards = class_shards(objective)
    return [parameter for name, parameter in objective.named_parameters() if name in shards]


def as_whole(rows: Tensor, shard: ClassShard) -> Tensor:
    """A tensor (C, ...) of all classes, of which this rank holds `rows` (K, ...), sharing their memory.

    For checkpoints only: it knows its shape, its dtype and where its rows lie, and is not for computing, as DTensor
    itself splits uneven rows otherwise than `ClassShard` does. Talks to no other rank. Where one rank holds every
    class, this is `rows` itself.
    """
    assert len(rows) == shard.size, "the tensor does not hold the rows of its shard"
    rows = rows.detach()
    if shard.is_whole:
        return rows
    shape = torch.Size((shard.num_classes, *rows.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh = _mesh(shard.group or _default_group(), rows.device.type)
    with torch.no_grad():
        whole = DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=shape, stride=stride)
    return _placed(whole, shard.start)


def copy_of(whole: DTensor, rows: Tensor) -> DTensor:
    """A DTensor like `whole` over `rows`, a copy of its local tensor, whichever device that is on."""
    # `DTensor.from_local` would move the copy back to the mesh's device.
    copy = DTensor(rows, whole._spec, requires_grad=False)
    start = vars(whole).get("first_class")
    return copy if start is None else _placed(copy, start)


def read_whole(folder: Path, name: str) -> Tensor:
    """One whole tensor of a whole checkpoint, put together from its chunks on the CPU, by this process alone.

    Talks to no other rank, so that rank 0 may call it in the saver's thread.

    Args:
        folder: the checkpoint. Sizes of files are checked here, their digests not: `Checkpoints.load` does that.
        name: as the checkpoint stores it, such as `model/head.weight`.

    Raises:
        CheckpointError: no whole checkpoint, no such tensor, one that is larger than its files, or a damaged one.
    """
    sizes = {file: record.size for file, record in verify(folder, with_digests=False).files.items()}
    stored = read_stored_tensors(folder, sizes).get(name)
    if stored is None:
        raise CheckpointError(f"the checkpoint {folder} holds no `{name}`; give one of a run that trains it")
    _check_size(folder, name, stored, sum(sizes.values()))
    whole = torch.empty(stored.shape, dtype=stored.dtype)
    for chunk in stored.chunks:
        box = tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))
        whole[box] = read_chunk(folder, chunk, stored.dtype, name)
    return whole


def _check_size(folder: Path, name: str, stored: StoredTensor, num_file_bytes: int) -> None:
    # Several chunks may claim the same bytes, so the sum of their lengths bounds nothing.
    num_bytes = stored.dtype.itemsize * torch.Size(stored.shape).numel()
    if num_bytes > num_file_bytes:
        raise CheckpointError(
            f"the checkpoint {folder} is damaged: `{name}` of shape {stored.shape} takes {num_bytes} bytes, and all "
            f"its files have {num_file_bytes}; give another checkpoint"
        )


def _placed(whole: DTensor, start: int) -> DTensor:
    """Tell DCP where the rows of `whole` lie; it asks each tensor, and DTensor would answer by its own rule.

    Only this very object knows: what an operator makes of it, even `detach`, is a DTensor like any other.
    """
    rows, shape = whole._local_tensor, whole.shape
    chunk = ChunkStorageMetadata(torch.Size((start, *(0 for _ in rows.shape[1:]))), rows.shape)

    def write_items(name: str, _: Any) -> list[WriteItem]:
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(rows), shape)
        return [WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, tensor_data=data)]

    vars(whole).update(first_class=start, __create_write_items__=write_items, __create_chunk_list__=lambda: [chunk])
    return whole


def _default_group() -> ProcessGroup:
    return cast(ProcessGroup, dist.group.WORLD)


@functools.lru_cache(maxsize=2)
def _mesh(group: ProcessGroup, device_type: str) -> DeviceMesh:
    """All ranks in a row. Made from a group that exists, which takes no talking, as `init_device_mesh` would."""
    return DeviceMesh.from_group(group, device_type)
