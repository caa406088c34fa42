"""Tensors to and from a folder by torch.distributed.checkpoint (DCP), with every reader of pickles replaced."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem, SavePlan
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from gkd.core import distributed
from gkd.core.errors import CheckpointError, GkdError
from gkd.train.checkpoint_agreement import on_every_rank, on_rank_0
from gkd.train.checkpoint_metadata import StoredChunk, StoredTensor

_NUM_NAMED = 3


class _Writer(FileSystemWriter):
    def storage_meta(self) -> None:
        """Nothing: DCP would store the absolute path of the folder."""
        return None


class _Reader(FileSystemReader):
    def __init__(self, folder: Path, stored: dict[str, StoredTensor]) -> None:
        super().__init__(folder)
        self._folder = folder
        self._stored = stored
        self._chunks = {(name, chunk.offsets): chunk for name, tensor in stored.items() for chunk in tensor.chunks}

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        """The checked contents of `.metadata`, in DCP's own classes."""
        return Metadata({name: _as_dcp(tensor) for name, tensor in self._stored.items()}, storage_data={})

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the planned tensors in place."""
        for item in plan.items:
            self._read_item(item, planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_item(self, item: ReadItem, planner: LoadPlanner) -> None:
        index = item.storage_index
        chunk = self._chunks[index.fqn, tuple(index.offset or ())]
        box = read_chunk(self._folder, chunk, self._stored[index.fqn].dtype, index.fqn)
        for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
            box = box.narrow(dim, start, length)
        target = planner.resolve_tensor(item).detach()
        target.copy_(box)
        planner.commit_tensor(item, target)


class _LoadPlanner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Refuse: the default would unpickle the bytes."""
        raise CheckpointError(f"`{read_item.dest_index.fqn}` is a pickled object; only tensors are read")


def write_tensors(folder: Path, tensors: dict[str, Tensor], group: ProcessGroup | None = None) -> set[str]:
    """Write the tensors of all ranks into `folder`, unsynced; returns the names of the files that hold them.

    Of replicated tensors rank 0's are written; of a DTensor each rank's own shard. DCP plans and writes, but the ranks
    agree over `group` by our own messages: DCP's `save` warns where there is one process, and warnings cannot be
    silenced in a thread.

    Raises:
        CheckpointError: on every rank, where any rank failed (a full disk), naming the rank.
    """
    writer = _Writer(folder, sync_files=False)
    planner = DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )
    try:
        local_plans = on_every_rank(lambda: _local_plan(writer, planner, tensors), group)
        # Every rank makes the same global plan out of the same local ones.
        plans, metadata = planner.create_global_plan(local_plans)
        own_plan = writer.prepare_global_plan(plans)[distributed.rank()]
        results = on_every_rank(lambda: _write(writer, planner, own_plan), group)
        on_rank_0(lambda: writer.finish(metadata, results), group)
    except CheckpointError as error:
        raise CheckpointError(f"could not write the checkpoint {folder}: {error}") from error
    return {result.storage_data.relative_path for own in results for result in own}


def read_tensors(folder: Path, stored: dict[str, StoredTensor], tensors: dict[str, Tensor]) -> None:
    """Fill `tensors` in place from `folder`; names, shapes and dtypes have been compared before.

    Raises:
        CheckpointError: on every rank, where any rank failed, naming the rank.
    """
    planner = _LoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _plain_errors(f"could not read the checkpoint {folder}"), torch.no_grad():
        load(dict(tensors), storage_reader=_Reader(folder, stored), planner=planner)


def compare(folder: Path, stored: dict[str, StoredTensor], tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError, with the first few names of each kind, where the checkpoint is of another network."""
    both = [name for name in tensors if name in stored]
    kinds = {
        "missing": [name for name in tensors if name not in stored],
        "unexpected": [name for name in stored if name not in tensors],
        "of another shape": [
            f"{name}: {stored[name].shape} stored, {tuple(tensors[name].shape)} wanted"
            for name in both
            if stored[name].shape != tuple(tensors[name].shape)
        ],
        "of another dtype": [
            f"{name}: {stored[name].dtype} stored, {tensors[name].dtype} wanted"
            for name in both
            if stored[name].dtype != tensors[name].dtype
        ],
    }
    found = [f"{len(names)} {kind} ({_first(names)})" for kind, names in kinds.items() if names]
    if found:
        raise CheckpointError(
            f"the checkpoint {folder} is of another network or optimiser: {', '.join(found)}; "
            "resume with the configuration that wrote it"
        )


def _local_plan(writer: FileSystemWriter, planner: DefaultSavePlanner, tensors: dict[str, Tensor]) -> SavePlan:
    is_rank_0 = distributed.rank() == 0
    planner.set_up_planner(dict(tensors), writer.storage_meta(), is_rank_0)
    writer.set_up_storage_writer(is_rank_0)
    return writer.prepare_local_plan(planner.create_local_plan())


def _write(writer: FileSystemWriter, planner: DefaultSavePlanner, plan: SavePlan) -> list[WriteResult]:
    return writer.write_data(planner.finish_plan(plan), planner).wait()


def _first(names: list[str]) -> str:
    more = ["…"] if len(names) > _NUM_NAMED else []
    return ", ".join(names[:_NUM_NAMED] + more)


def _as_dcp(tensor: StoredTensor) -> TensorStorageMetadata:
    chunks = [ChunkStorageMetadata(torch.Size(chunk.offsets), torch.Size(chunk.sizes)) for chunk in tensor.chunks]
    return TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), chunks)


def read_chunk(folder: Path, chunk: StoredChunk, dtype: torch.dtype, name: str) -> Tensor:
    """One chunk of the stored tensor `name`, on the CPU; `dtype` is what the checkpoint lists for it.

    Raises:
        CheckpointError: its bytes are damaged, unsafe, or not the tensor that is listed.
    """
    with (folder / chunk.file).open("rb") as stream:
        stream.seek(chunk.start_byte)
        data = stream.read(chunk.num_bytes)
    where = f"`{name}` in {folder / chunk.file}"
    try:
        _check_archive(data)
        box = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many types on hostile bytes
        reason = str(error).split("\n", 1)[0]
        raise CheckpointError(f"{where} is damaged or unsafe and was refused: {reason}") from error
    if type(box) is not Tensor or box.dtype != dtype or tuple(box.shape) != chunk.sizes or box.layout != torch.strided:
        raise CheckpointError(f"{where} is not the {dtype} tensor of shape {chunk.sizes} that the checkpoint lists")
    return box


def _check_archive(data: bytes) -> None:
    # torch.save stores its records as they are; packed ones could unfold to any size.
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError("it has compressed records")
    if sum(record.file_size for record in records) > len(data):
        raise CheckpointError("its records are larger than the file")


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Turn DCP's failures, which it gathers from all ranks, into one CheckpointError; silence its one-process note."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is (disabled|unavailable)")
            yield
    except CheckpointException as error:
        reasons = [f"rank {rank}: {_reason(failure[0])}" for rank, failure in error.failures.items()]
        raise CheckpointError(f"{what}: {'; '.join(reasons)}") from error


def _reason(error: BaseException) -> str:
    text = str(error).split("\n", 1)[0]
    return text if isinstance(error, GkdError) else f"{type(error).__name__}: {text}"
