"""Class weights split over 1, 2 and 3 ranks (gloo): checkpoints, background saves, moving averages and clipping."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gkd.core import distributed
from gkd.core.class_shard import ClassShard
from gkd.core.distributed import end_process
from gkd.core.errors import CheckpointError
from gkd.train import class_weights
from gkd.train.checkpoint import Checkpoints
from gkd.train.checkpoint_staging import HostCopies
from gkd.train.class_weights import as_whole, class_shards, read_whole, sharded_parameters
from gkd.train.disk_space import checkpoint_bytes
from gkd.train.ema import Ema
from gkd.train.optim import build_sgd, clip_gradients
from gkd.train.saving import BackgroundSaver
from gkd.train.state import run_tensors
from tests.train.test_checkpoint_hostile import change_metadata
from tests.train.test_saving_ranks import slow_stream

# Neither is divisible by 2 or 3. On three ranks 7 rows are 3 + 2 + 2 here, and 3 + 3 + 1 by torch's own rule.
NUM_CLASSES = {"head.weight": (7, 4), "wide.weight": (10007, 2)}
MOVES = [1, 3, 2, 1, 2, 3]


class Net(nn.Module):
    """A layer that every rank holds, and two weights by class; split over the ranks unless `is_replicated`."""

    def __init__(self, *, is_replicated: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.head, self.wide = nn.Module(), nn.Module()
        shards = {name: ClassShard.of_rank(shape[0]) for name, shape in NUM_CLASSES.items()}
        for name, (num_classes, dim) in NUM_CLASSES.items():
            rows = num_classes if is_replicated else shards[name].size
            self.get_submodule(name.split(".")[0]).weight = nn.Parameter(torch.zeros(rows, dim))
        if not is_replicated:
            self.class_shards = shards


class Run:
    """The state of a run, as `run_tensors` gives it."""

    def __init__(self, *, is_replicated: bool = False) -> None:
        self.net = Net(is_replicated=is_replicated)
        self.optimizer = build_sgd(self.net, lr=0.1)
        self.ema = Ema(self.net, 0.9)

    def tensors(self) -> dict[str, Tensor]:
        return run_tensors(self.net, self.optimizer, self.ema)

    def live(self) -> dict[str, Tensor]:
        """The same tensors as this rank holds them."""
        named = dict(self.net.named_parameters())
        momentum = {name: self.optimizer.state[each]["momentum_buffer"] for name, each in named.items()}
        kinds = {"model": {name: each.detach() for name, each in named.items()}, "momentum": momentum}
        return {
            f"{kind}/{name}": each
            for kind, group in (kinds | {"ema": self.ema.tensors}).items()
            for name, each in group.items()
        }

    def wanted(self, turn: int) -> dict[str, Tensor]:
        """What `live` must hold after `fill(turn)`."""
        shards = class_shards(self.net)
        found = {}
        for name, tensor in self.live().items():
            shard = shards.get(name.split("/")[1])
            whole = pattern(name, turn, tensor.shape if shard is None else NUM_CLASSES[name.split("/")[1]])
            found[name] = whole if shard is None else whole[shard.start : shard.stop]
        return found

    def fill(self, turn: int) -> None:
        self.tensors()  # makes the momentum
        for name, tensor in self.live().items():
            tensor.copy_(self.wanted(turn)[name])

    def assert_filled(self, turn: int) -> None:
        wanted = self.wanted(turn)
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in self.live().items())


def pattern(name: str, turn: int, shape: tuple[int, ...]) -> Tensor:
    """Another number in every place of every tensor and turn."""
    generator = torch.Generator().manual_seed(1000 * turn + sum(name.encode()))
    return torch.randn(*shape, generator=generator)


def join(rank: int, folder: str, turn: int, num_ranks: int) -> None:
    store = dist.FileStore(f"{folder}/store{turn}", num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks, timeout=timedelta(seconds=60))


def one_rank(rank: int, folder: str) -> None:
    """Save and load the same run with each number of ranks in turn; the processes beyond it sit out."""
    torch.set_num_threads(1)
    checkpoints = Checkpoints(Path(folder) / "run", keep_last=9)
    for turn, num_ranks in enumerate(MOVES):
        if rank < num_ranks:
            join(rank, folder, turn, num_ranks)
            one_turn(turn, num_ranks, checkpoints)
            dist.destroy_process_group()
    end_process(0)


def one_turn(turn: int, num_ranks: int, checkpoints: Checkpoints) -> None:
    run = Run()
    if turn > 0:
        load_and_compare(run, turn - 1, checkpoints)
    run.fill(turn)
    look_at_tensors(run, num_ranks)
    if turn == len(MOVES) - 1:
        save_in_the_background(run, turn, checkpoints)
        refuse_other_classes(checkpoints)
    else:
        checkpoints.save(turn, run.tensors(), {})
    clip_dense_and_sparse(num_ranks)
    average()


def load_and_compare(run: Run, turn: int, checkpoints: Checkpoints) -> None:
    path = checkpoints.latest()
    assert path is not None
    assert path.name == f"step_{turn:08d}"
    checkpoints.load(path, run.tensors())
    run.assert_filled(turn)
    # A run that keeps every class on every rank reads it too: names and shapes are the same.
    full = Run(is_replicated=True)
    checkpoints.load(path, full.tensors())
    full.assert_filled(turn)


def look_at_tensors(run: Run, num_ranks: int) -> None:
    tensors, live = run.tensors(), run.live()
    full = Run(is_replicated=True)
    full_tensors = full.tensors()
    assert [(name, tuple(tensor.shape)) for name, tensor in tensors.items()] == [
        (name, tuple(tensor.shape)) for name, tensor in full_tensors.items()
    ]
    for name, tensor in tensors.items():
        is_split = num_ranks > 1 and name.split("/")[1] in NUM_CLASSES
        assert isinstance(tensor, DTensor) == is_split
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        assert local.data_ptr() == live[name].data_ptr()
        assert not tensor.requires_grad
    if distributed.rank() == 0:  # alone: nothing here may wait for the others
        assert checkpoint_bytes(run.tensors().values()) == checkpoint_bytes(full_tensors.values())
    if num_ranks > 1:
        meshes = {
            id(tensor.device_mesh)
            for tensor in [*tensors.values(), *run.tensors().values()]
            if isinstance(tensor, DTensor)
        }
        assert len(meshes) == 1
    with pytest.raises(AssertionError, match="does not hold the rows of its shard"):
        as_whole(torch.zeros(3, 4), ClassShard(7, 0, 2))


def save_in_the_background(run: Run, turn: int, checkpoints: Checkpoints) -> None:
    """Beside collectives of training; rank 0 alone reads the whole in the saver's thread."""
    rank, seen = distributed.rank(), {}
    slow_stream(0.2)
    keep_threads_off_the_default_group()

    def read() -> None:
        assert saver.last_path is not None
        seen.update({name: read_whole(saver.last_path, name) for name in full_names})

    full_names = [name for name in run.live() if name.split("/")[1] in NUM_CLASSES]
    with BackgroundSaver(checkpoints, timeout_minutes=1) as saver:
        for step in (turn, turn + 1):  # the second one uses the first one's buffers
            saver.save(step, run.tensors(), {}, also=read)
            run.fill(77)
            assert train_beside(saver) > 5
            saver.wait()
            assert saver.last_error is None
            assert set(seen) == (set(full_names) if rank == 0 else set())
            for name, tensor in seen.items():
                assert torch.equal(tensor, pattern(name, turn, NUM_CLASSES[name.split("/")[1]]))
            run.fill(turn)
        again = Run()
        checkpoints.load(checkpoints.folder / f"step_{turn + 1:08d}", again.tensors())
        again.assert_filled(turn)


def keep_threads_off_the_default_group() -> None:
    def kept_off(original: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any, group: Any = None, **options: Any) -> Any:
            is_default = group in (None, dist.group.WORLD)
            assert not is_default or threading.current_thread() is threading.main_thread()
            return original(*arguments, group=group, **options)

        return checked

    for name in ("all_reduce", "barrier", "all_gather_object", "gather_object", "broadcast_object_list"):
        setattr(dist, name, kept_off(getattr(dist, name)))


def train_beside(saver: BackgroundSaver) -> int:
    """Reduce over the default group for as long as the save runs; returns how many sums there were."""
    count, is_running, num_ranks = 0, True, distributed.world_size()
    while is_running:
        count += 1
        total = distributed.all_reduce_sum(torch.full((100,), float(count + distributed.rank())))
        assert torch.equal(total, torch.full((100,), float(num_ranks * count + sum(range(num_ranks)))))
        assert saver._thread is not None
        is_running = any(distributed.gather_objects(saver._thread.is_alive()))
    return count


def refuse_other_classes(checkpoints: Checkpoints) -> None:
    path = checkpoints.latest()
    assert path is not None
    run, eight = Run(), ClassShard.of_rank(8)
    other = run.tensors() | {"model/head.weight": as_whole(torch.zeros(eight.size, 4), eight)}
    with pytest.raises(CheckpointError, match=r"another shape \(model/head.weight: \(7, 4\) stored, \(8, 4\) wanted"):
        checkpoints.load(path, other)


def whole_gradients(name: str) -> Tensor:
    return 100 * pattern(name, 55, NUM_CLASSES[name])


def sparse_rows(gradient: Tensor, rows: Tensor) -> Tensor:
    """The same gradient for these rows, in two halves that add up."""
    indices = torch.cat([rows, rows])[None]
    values = torch.cat([gradient[rows] * 0.25, gradient[rows] * 0.75])
    return torch.sparse_coo_tensor(indices, values, gradient.shape, check_invariants=True)


def clip_dense_and_sparse(num_ranks: int) -> None:
    for is_sparse in (False, True):
        net, full = Net(), Net(is_replicated=True)
        for name, shard in net.class_shards.items():
            gradient = whole_gradients(name)
            if is_sparse:
                gradient[1::2] = 0.0
            own = gradient[shard.start : shard.stop].clone()
            parameter = net.get_parameter(name)
            full.get_parameter(name).grad = gradient
            parameter.grad = sparse_rows(own, own.any(dim=1).nonzero()[:, 0]) if is_sparse else own
        for module in (net, full):
            module.layer.weight.grad = torch.full((4, 3), 50.0)
        for limit in (None, 3.0):
            wanted = clip_gradients(full.parameters(), limit)
            norm = clip_gradients(list(net.parameters()), limit, sharded_parameters(net))
            torch.testing.assert_close(norm, wanted)
            assert len(set(distributed.gather_objects(norm.item()))) == 1
            assert num_ranks > 1 or is_sparse or norm == wanted
            assert_same_gradients(net, full)
    clip_where_one_rank_has_no_gradient()


def assert_same_gradients(net: Net, full: Net) -> None:
    torch.testing.assert_close(net.layer.weight.grad, full.layer.weight.grad)
    assert net.layer.bias.grad is None
    for name, shard in net.class_shards.items():
        own, whole = net.get_parameter(name).grad, full.get_parameter(name).grad
        assert own is not None
        assert whole is not None
        assert not own.is_sparse or own.is_coalesced()
        torch.testing.assert_close(own.to_dense(), whole[shard.start : shard.stop])


def clip_where_one_rank_has_no_gradient() -> None:
    net = Net()
    if distributed.rank() == 0:
        net.head.weight.grad = torch.ones_like(net.head.weight)
    others = [net.layer.weight, net.layer.bias]  # the sharded ones need not be among them
    norm = clip_gradients(others, 1.0, sharded_parameters(net))
    rows = ClassShard.of_rank(7, 0).size
    torch.testing.assert_close(norm, torch.tensor((rows * 4.0) ** 0.5))
    large = nn.Parameter(torch.zeros(2))
    large.grad = torch.full((2,), 1e19)  # the sum of two ranks' squares is no fp32 number
    torch.testing.assert_close(
        clip_gradients([], 1.0, [large]), torch.tensor(1e19 * (2.0 * distributed.world_size()) ** 0.5)
    )


def average() -> None:
    """The rows' averages are those of the whole, through updates and a swap."""
    run, full = Run(), Run(is_replicated=True)
    for step in range(3):
        for each in (run, full):
            each.fill(60 + step)
            each.ema.update(step)
    with run.ema.applied(), full.ema.applied():
        compare_rows(run, full, "model")
    compare_rows(run, full, "ema")


def compare_rows(run: Run, full: Run, kind: str) -> None:
    ours, theirs = run.live(), full.live()
    for name, shard in class_shards(run.net).items():
        torch.testing.assert_close(ours[f"{kind}/{name}"], theirs[f"{kind}/{name}"][shard.start : shard.stop])


def test_a_split_run_moves_between_numbers_of_ranks(tmp_path: Path) -> None:
    mp.spawn(one_rank, (str(tmp_path),), nprocs=3)
    checkpoints = Checkpoints(tmp_path / "run")
    latest = checkpoints.latest()
    assert latest is not None
    run = Run(is_replicated=True)
    checkpoints.load(latest, run.tensors())
    run.assert_filled(len(MOVES) - 1)


def test_without_shards_nothing_is_split() -> None:
    net = nn.Linear(2, 3)
    assert class_shards(net) == {}
    assert sharded_parameters(net) == []
    rows = torch.nn.Parameter(torch.ones(3, 2))
    whole = as_whole(rows, ClassShard(3, 0, 3))
    assert type(whole) is Tensor
    assert whole.data_ptr() == rows.data_ptr()
    assert not whole.requires_grad
    assert HostCopies().take({"a": whole})["a"].data_ptr() != rows.data_ptr()


def test_a_frozen_head_has_no_momentum() -> None:
    net = Net()
    net.head.weight.requires_grad_(False)
    assert "momentum/head.weight" not in run_tensors(net, build_sgd(net, lr=0.1))
    assert class_weights.sharded_parameters(net)[0] is net.head.weight


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tensors = {"weight": torch.arange(12.0).reshape(4, 3), "scalar": torch.tensor(5), "empty": torch.zeros(0, 3)}
    return Checkpoints(tmp_path).save(5, tensors, {})


@pytest.mark.parametrize("name", ["weight", "scalar", "empty"])
def test_one_tensor_is_read_without_the_others(saved: Path, name: str) -> None:
    found = {"weight": torch.zeros(4, 3), "scalar": torch.tensor(0), "empty": torch.zeros(0, 3)}
    Checkpoints(saved.parent).load(saved, found)
    whole = read_whole(saved, name)
    assert torch.equal(whole, found[name])
    assert (whole.dtype, whole.shape) == (found[name].dtype, found[name].shape)


def claim(num_rows: int) -> Callable[[Any], None]:
    """Let the tensor pretend to have many rows, on the bytes that it has."""

    def change(metadata: Any) -> None:
        entry = metadata.state_dict_metadata["weight"]
        entry.size = torch.Size((num_rows, 3))
        entry.chunks[0].sizes = torch.Size((num_rows, 3))

    return change


def test_a_tensor_larger_than_the_files_is_refused_before_memory_is_taken(saved: Path) -> None:
    change_metadata(saved, claim(1 << 50))
    with pytest.raises(CheckpointError, match=rf"`weight` of shape \({1 << 50}, 3\) takes {12 << 50} bytes, and all"):
        read_whole(saved, "weight")
    change_metadata(saved, claim(5))
    with pytest.raises(CheckpointError, match=r"`weight` in .* is not the torch.float32 tensor of shape \(5, 3\)"):
        read_whole(saved, "weight")


def test_what_is_missing_or_damaged_is_named(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no `head`; give one of a run that trains it"):
        read_whole(saved, "head")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        read_whole(saved / "nowhere", "weight")
    file = saved / "__0_0.distcp"
    data = file.read_bytes()
    file.write_bytes(bytes(len(data)))
    with pytest.raises(CheckpointError, match=r"`weight` in .* is damaged or unsafe and was refused"):
        read_whole(saved, "weight")
    file.write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match=r"is damaged: .* bytes, not"):
        read_whole(saved, "weight")
