"""The loader's order, its independence of how it is run, and what happens when something breaks."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError, DataError
from gkd.data import RawBatch, RecordFile, TrainLoader, decode_image
from gkd.data.batches import share
from gkd.data.worker_watch import WATCH
from tests.data.faces import make_image, write_faces

SIZE = (16, 16)


class Faces:
    """Face data in memory; `broken` maps an index to what it holds or raises instead."""

    identity_names = None
    fingerprint = ""

    def __init__(self, num_images: int = 23, broken: dict[int, Any] | None = None) -> None:
        self.images = [make_image(number) for number in range(num_images)]
        self.broken = broken or {}
        self.num_identities = 5

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        found = self.broken.get(index, self.images[index])
        if isinstance(found, Exception):
            raise found
        if callable(found):
            found()
        return found, index % 5

    def describe(self, index: int) -> str:
        return f"faces {index}"


def _loader(data: Any = None, **changes: Any) -> TrainLoader:
    settings = {"batch_size": 7, "seed": 3, "image_size": SIZE, "total_steps": 8} | changes
    return TrainLoader(data or Faces(), **settings)


def _by_step(batches: Sequence[RawBatch]) -> dict[int, list[tuple[int, bool, bytes]]]:
    """Each step's images in order, with their ids and whether they are mirrored."""
    steps: dict[int, list[tuple[int, bool, bytes]]] = {}
    for batch in batches:
        for place in range(len(batch)):
            row = (int(batch.sample_ids[place]), bool(batch.is_flipped[place]), batch.images[place].numpy().tobytes())
            steps.setdefault(batch.step, []).append(row)
    return steps


@pytest.fixture(scope="module")
def expected() -> dict[int, list[tuple[int, bool, bytes]]]:
    """The order by the words of the design: three batches of 7 an epoch, two images left out."""
    data, steps = Faces(), {}
    for step in range(8):
        epoch, place = divmod(step, 3)
        ids = randomness.permutation(23, 3, epoch)[place * 7 : place * 7 + 7]
        is_flipped = randomness.uniform(ids, 3, epoch, stream=0) < 0.5
        pixels = [decode_image(data[int(index)][0], SIZE, "x").tobytes() for index in ids]
        steps[step] = [
            (int(index), bool(flip), image) for index, flip, image in zip(ids, is_flipped, pixels, strict=True)
        ]
    return steps


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_order(expected: Any, num_workers: int, num_micro_batches: int, world_size: int) -> None:
    changes = {"num_workers": num_workers, "num_micro_batches": num_micro_batches, "world_size": world_size}
    ranks = [list(_loader(rank=rank, **changes)) for rank in range(world_size)]
    in_order = [batch for together in zip(*ranks, strict=True) for batch in together]
    assert [(batch.step, batch.micro_batch) for batch in ranks[0]] == [
        (step, part) for step in range(8) for part in range(num_micro_batches)
    ]
    assert _by_step(in_order) == expected
    assert len(_loader(**changes)) == len(ranks[0])


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
def test_shares_differ_by_one_at_most(num_micro_batches: int) -> None:
    batches = [batch for batch in _loader(num_micro_batches=num_micro_batches) if batch.step == 0]
    sizes = [len(batch) for batch in batches]
    assert sizes == {1: [7], 2: [4, 3], 4: [2, 2, 2, 1]}[num_micro_batches]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume(expected: Any, num_workers: int) -> None:
    for start in (2, 3, 7):
        batches = list(_loader(start_step=start, num_workers=num_workers, num_micro_batches=2))
        assert _by_step(batches) == {step: rows for step, rows in expected.items() if step >= start}
    assert list(_loader(start_step=8, num_workers=num_workers)) == []


def test_each_sample_comes_once_an_epoch() -> None:
    loader = _loader(Faces(21))
    assert loader.steps_per_epoch == 3
    ids: dict[int, list[int]] = {}
    for batch in loader:
        ids.setdefault(batch.epoch, []).extend(batch.sample_ids.tolist())
    assert sorted(ids[0]) == sorted(ids[1]) == list(range(21))
    assert ids[0] != ids[1]


def test_what_a_batch_holds(tmp_path: Path) -> None:
    faces = write_faces(tmp_path / "a.rec")
    for num_workers in (0, 1):
        batch = next(iter(_loader(RecordFile(tmp_path / "a.rec"), num_workers=num_workers, flip_probability=1.0)))
        assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (7, 16, 16, 3))
        assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
        assert batch.is_flipped.dtype == torch.bool
        assert batch.is_flipped.all()
        assert (batch.step, batch.epoch, batch.micro_batch, batch.num_replaced, len(batch)) == (0, 0, 0, 0, 7)
        for place, sample_id in enumerate(batch.sample_ids.tolist()):
            encoded, label = faces[sample_id]
            assert batch.labels[place] == label
            assert np.array_equal(batch.images[place].numpy(), decode_image(encoded, SIZE, "x"))


def test_iterating_again_starts_over(expected: Any) -> None:
    with _loader(num_workers=1) as loader:
        for _ in loader:
            break
        assert _by_step(list(loader)) == expected


def _children() -> set[int]:
    own = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()}


@pytest.mark.parametrize("ending", ["end", "break", "error", "close"])
def test_loading_processes_end_with_the_iteration(ending: str) -> None:
    before = _children()
    loader = _loader(Faces(23, {} if ending != "error" else {4: b"bad"}), num_workers=2)
    if ending == "error":
        with pytest.raises(DataError):
            list(loader)
    elif ending == "close":
        running = iter(loader)
        next(running)
        assert len(_children() - before) == 2
    else:
        for _ in loader:
            assert len(_children() - before) == 2 or ending == "end"
            if ending == "break":
                break
    loader.close()
    assert _children() == before


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("found", "message"),
    [
        (b"bad", r"^faces 4: not a JPEG, PNG, BMP or WebP image \(begins with b'bad'\)$"),
        (make_image(0, (9, 16)), r"^faces 4: the image is 9x16 pixels .*$"),
        (DataError("record 4 is damaged"), "^record 4 is damaged$"),
        (ConfigError("not so"), "^not so$"),
        (ValueError("odd\nlines"), "^faces 4: ValueError: odd$"),
        (KeyError("k"), "^faces 4: KeyError: 'k'$"),
    ],
)
def test_a_bad_record_stops_with_its_own_message(num_workers: int, found: Any, message: str) -> None:
    error_type = type(found) if isinstance(found, ConfigError) else DataError
    with pytest.raises(error_type, match=message):
        list(_loader(Faces(23, {4: found}), num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_record_can_be_skipped(expected: Any, num_workers: int) -> None:
    data = Faces(23, {4: b"bad", 5: DataError("gone"), 22: b"bad"})
    batches = list(_loader(data, num_workers=num_workers, on_bad_record="skip"))
    replacement = {4: 6, 5: 6, 22: 0}
    for batch in batches:
        wanted = [row[0] for row in expected[batch.step]]
        assert batch.sample_ids.tolist() == [replacement.get(index, index) for index in wanted]
        assert batch.labels.tolist() == [index % 5 for index in batch.sample_ids.tolist()]
        flips = randomness.uniform(batch.sample_ids.numpy(), 3, batch.epoch) < 0.5
        assert batch.is_flipped.tolist() == flips.tolist()
        assert batch.num_replaced == len(batch.replaced) == sum({4: 2, 5: 1, 22: 1}.get(index, 0) for index in wanted)
    assert any("faces 22: not a JPEG" in text for batch in batches for text in batch.replaced)
    assert any(text == "gone" for batch in batches for text in batch.replaced)


def test_skipping_gives_up() -> None:
    with pytest.raises(DataError, match=r"not a JPEG.* \(and the 64 records before it cannot be used either\)"):
        list(_loader(Faces(100, dict.fromkeys(range(100), b"bad")), on_bad_record="skip"))


@pytest.mark.timeout(60)  # it must not wait for the loader's own 600 seconds
def test_a_killed_loading_process_is_told_of() -> None:
    data = Faces(23, {4: lambda: os.kill(os.getpid(), signal.SIGKILL)})
    with pytest.raises(DataError, match=r"a loading process died .*use fewer workers"):
        list(_loader(data, num_workers=2))


def test_a_death_between_batches_waits_for_the_next_one() -> None:
    before = _children()
    with _loader(num_workers=2, total_steps=1000) as loader:
        running = iter(loader)
        next(running)
        os.kill(min(_children() - before), signal.SIGKILL)
        deadline = time.monotonic() + 30
        while not WATCH._has_pending and time.monotonic() < deadline:
            time.sleep(0.01)  # nothing may be raised here
        with pytest.raises(DataError, match="a loading process died"):
            next(running)


def test_a_stuck_loading_process_is_told_of() -> None:
    data = Faces(23, {4: lambda: time.sleep(60)})
    with pytest.raises(DataError, match="no batch came from the loading processes for 1 seconds"):
        list(_loader(data, num_workers=1, timeout_seconds=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 24}, "batch_size 24 is larger than the data set of 23 images"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"num_micro_batches": 0}, "num_micro_batches must be at least 1"),
        ({"num_micro_batches": 4, "world_size": 2}, "batch_size 7 in 4 micro-batches .* 2 processes .* at least 8"),
        ({"world_size": 8}, "make it at least 8"),
        ({"rank": 1}, "rank 1 is not one of 1 processes"),
        ({"num_workers": -1}, "num_workers must be 0 or more, got -1"),
        ({"flip_probability": 1.5}, "flip_probability must lie in 0 to 1, got 1.5"),
        ({"on_bad_record": "ignore"}, "on_bad_record must be .* got 'ignore'"),
        ({"start_step": 9}, r"start_step must lie in 0 to total_steps \(8\), got 9"),
        ({"timeout_seconds": 0}, "timeout_seconds must be above 0"),
    ],
)
def test_settings_that_cannot_be_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _loader(**changes)


def test_shares_cover_everything_once() -> None:
    for num_items in range(12):
        for num_parts in range(1, 6):
            parts = [list(range(num_items))[share(num_items, num_parts, part)] for part in range(num_parts)]
            sizes = [len(part) for part in parts]
            assert [item for part in parts for item in part] == list(range(num_items))
            assert max(sizes) - min(sizes) <= 1
            assert sizes == sorted(sizes, reverse=True)
