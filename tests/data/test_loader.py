"""The loader's order, its independence of how it is run, and what happens when something breaks."""

from __future__ import annotations

import os
import secrets
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from gkd.core import seed as randomness
from gkd.core.errors import ConfigError, DataError
from gkd.data import RawBatch, RecordFile, TrainLoader, batch_ring, decode_image
from gkd.data.batch_delivery import DecodingDelivery
from gkd.data.batch_sending import choose_cut
from gkd.data.batches import BatchPlan, share
from gkd.data.gpu_decoding import can_gpu_decode
from gkd.data.sampling.uniform import Uniform
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
    data = data or Faces()
    settings = {"image_size": SIZE, "total_steps": 8} | changes
    names = ("num_micro_batches", "rank", "world_size")
    cut = {name: settings.pop(name) for name in names if name in settings}
    batch_size = settings.pop("batch_size", 7)
    order = Uniform().order(data, seed=3, batch_size=batch_size)
    return TrainLoader(data, BatchPlan(order, batch_size=batch_size, **cut), **settings)


def _kept(loader: Iterable[RawBatch]) -> list[RawBatch]:
    """All micro-batches, their images copied: the loader uses their memory again."""
    return [replace(batch, images=batch.images.clone()) for batch in loader]


Rows = list[tuple[int, bytes]]


def _by_step(batches: Sequence[RawBatch]) -> dict[int, Rows]:
    """Each step's images in order, with their ids."""
    steps: dict[int, Rows] = {}
    for batch in batches:
        for place in range(len(batch)):
            row = (int(batch.sample_ids[place]), batch.images[place].numpy().tobytes())
            steps.setdefault(batch.step, []).append(row)
    return steps


@pytest.fixture(scope="module")
def expected() -> dict[int, Rows]:
    """The order by the words of the design: three batches of 7 an epoch, two images left out."""
    data, steps = Faces(), {}
    for step in range(8):
        epoch, place = divmod(step, 3)
        ids = randomness.permutation(23, 3, epoch)[place * 7 : place * 7 + 7]
        pixels = [decode_image(data[int(index)][0], SIZE, "x").tobytes() for index in ids]
        steps[step] = [(int(index), image) for index, image in zip(ids, pixels, strict=True)]
    return steps


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_order(expected: Any, num_workers: int, num_micro_batches: int, world_size: int) -> None:
    changes = {"num_workers": num_workers, "num_micro_batches": num_micro_batches, "world_size": world_size}
    ranks = [_kept(_loader(rank=rank, **changes)) for rank in range(world_size)]
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
        batches = _kept(_loader(start_step=start, num_workers=num_workers, num_micro_batches=2))
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
        batch = next(iter(_loader(RecordFile(tmp_path / "a.rec"), num_workers=num_workers)))
        assert (batch.images.dtype, tuple(batch.images.shape)) == (torch.uint8, (7, 16, 16, 3))
        assert batch.labels.dtype == batch.sample_ids.dtype == torch.int64
        assert (batch.step, batch.epoch, batch.micro_batch, batch.num_replaced, len(batch)) == (0, 0, 0, 0, 7)
        for place, sample_id in enumerate(batch.sample_ids.tolist()):
            encoded, label = faces[sample_id]
            assert batch.labels[place] == label
            assert np.array_equal(batch.images[place].numpy(), decode_image(encoded, SIZE, "x"))


def test_iterating_again_starts_over(expected: Any) -> None:
    with _loader(num_workers=1) as loader:
        for _ in loader:
            break
        assert _by_step(_kept(loader)) == expected


def _children() -> set[int]:
    own = os.getpid()
    return {int(pid) for pid in Path(f"/proc/{own}/task/{own}/children").read_text().split()}


@pytest.mark.parametrize("ending", ["end", "break", "error", "close"])
def test_loading_processes_end_with_the_iteration(ending: str) -> None:
    # Image 2 is left out of the first epoch.
    loader = _loader(Faces(23, {2: b"bad"} if ending == "error" else {}), num_workers=2)
    before = _children()
    running = iter(loader)
    next(running)
    started = _children() - before
    assert len(started) == 2
    if ending == "error":
        with pytest.raises(DataError):
            list(running)
    elif ending == "end":
        list(running)
    elif ending == "break":
        for _ in running:
            break
    loader.close()
    assert not started & _children()


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


def test_a_stopped_loading_process_does_not_outlive_the_message() -> None:
    """One that waits for a dead disk would be waited for when the run ends."""
    data = Faces(23, {4: lambda: os.kill(os.getpid(), signal.SIGSTOP)})
    before = _children()
    with pytest.raises(DataError, match="no batch came from the loading processes for 1 seconds"):
        list(_loader(data, num_workers=1, timeout_seconds=1))
    for _ in range(100):
        if not _children() - before:
            break
        time.sleep(0.1)
    assert not _children() - before


def test_after_a_failure_nothing_more_of_the_piece_is_read(tmp_path: Path) -> None:
    def fail() -> None:
        (tmp_path / secrets.token_hex(4)).touch()
        raise DataError("gone")

    data = Faces(23, dict.fromkeys(range(23), fail))
    with pytest.raises(DataError, match="gone"):
        list(_loader(data, num_workers=1))
    assert len(list(tmp_path.iterdir())) == 1  # nine micro-batches of 7 images make one piece of work


@pytest.mark.parametrize(("num_workers", "most"), [(0, 2), (1, 112), (3, 260)])
def test_the_same_memory_is_used_again(num_workers: int, most: int) -> None:
    places = {batch.images.data_ptr() for batch in _loader(num_workers=num_workers, total_steps=300)}
    assert len(places) == most


@pytest.mark.parametrize("num_rows", [1, 7, 64, 255, 256, 511, 512, 2048, 5000])
@pytest.mark.parametrize("num_workers", [1, 2, 4, 7])
def test_how_micro_batches_are_cut(num_rows: int, num_workers: int) -> None:
    cut = choose_cut(num_rows, num_workers)
    assert 1 in (cut.num_parts, cut.num_together)
    assert 1 <= cut.num_parts <= num_workers
    rows_at_once = num_rows * cut.num_together / cut.num_parts
    assert rows_at_once >= 256
    assert rows_at_once < 512 or cut.num_parts == num_workers
    # Everything that may be waiting when a piece of work is asked for, and the micro-batch that was given up last.
    pieces = 2 * num_workers + 1
    assert cut.num_slots >= (pieces * cut.num_together + 1 if cut.num_parts == 1 else pieces / cut.num_parts + 1)


@pytest.mark.parametrize(("num_workers", "least_rows"), [(0, 7), (1, 7), (2, 3), (2, 7), (2, 14)])
def test_a_batch_stays_until_the_next_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, least_rows: int
) -> None:
    monkeypatch.setattr("gkd.data.batch_sending._LEAST_ROWS", least_rows)
    data = Faces()
    loader = _loader(data, num_workers=num_workers, total_steps=30)
    for batch, task in zip(loader, loader._plan.tasks(0, 30), strict=True):
        time.sleep(0.01)  # time enough to be overwritten
        assert batch.sample_ids.tolist() == task.sample_ids.tolist()
        for place, index in enumerate(batch.sample_ids.tolist()):
            assert np.array_equal(batch.images[place].numpy(), decode_image(data[index][0], SIZE, "x"))


@pytest.mark.parametrize("least_rows", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("num_workers", [1, 2, 3, 5])
def test_any_number_of_parts(expected: Any, monkeypatch: pytest.MonkeyPatch, num_workers: int, least_rows: int) -> None:
    monkeypatch.setattr("gkd.data.batch_sending._LEAST_ROWS", least_rows)
    assert _by_step(_kept(_loader(num_workers=num_workers))) == expected
    assert _by_step(_kept(_loader(num_workers=num_workers, num_micro_batches=3))) == expected
    slow = _loader(num_workers=num_workers, total_steps=30)
    for batch in slow:
        assert len(batch.images.unique(dim=0)) == 7  # noise, so no image stands there twice or is half overwritten
    assert len(slow) == 30


def test_more_processes_than_images(expected: Any) -> None:
    assert _by_step(_kept(_loader(num_workers=5, num_micro_batches=3))) == expected


def test_memory_does_not_grow() -> None:
    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    after = {}
    for batch in _loader(num_workers=1, total_steps=1200):
        if batch.step in (200, 1199):
            after[batch.step] = resident_mib()
    assert after[1199] - after[200] < 4


def test_nothing_is_left_in_shared_memory() -> None:
    def own() -> list[str]:
        return [path.name for path in Path("/dev/shm").iterdir() if str(os.getpid()) in path.name]

    for batch in _loader(num_workers=2):
        assert own() == []
        assert "/dev/shm/torch" not in Path("/proc/self/maps").read_text()
        assert batch.images.numpy().flags.writeable
    assert own() == []


def test_the_runs_own_random_numbers_stay() -> None:
    for num_workers in (0, 1):
        torch.manual_seed(5)
        list(_loader(num_workers=num_workers))
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))


def test_too_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_ring, "_available_bytes", lambda: 20_000)
    with pytest.raises(DataError, match=r"the loader needs 0 MiB of memory for 2 micro-batches of 7 images of 16x16"):
        list(_loader())
    monkeypatch.setattr(batch_ring, "_available_bytes", lambda: None)
    assert len(list(_loader())) == 8
    monkeypatch.undo()
    assert (batch_ring._available_bytes() or 0) > 1 << 20


def test_processes_need_linux(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, expected: Any) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert _by_step(_kept(_loader(num_workers=2))) == expected
    assert "loading processes need Linux, this is darwin" in caplog.text


def test_decoding_on_a_gpu_that_is_not_there(expected: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert _by_step(_kept(_loader(decode="gpu"))) == expected
    assert 'decode="gpu" needs a CUDA device, and this run is on cpu' in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_on_a_gpu(expected: Any, num_workers: int) -> None:
    batches = list(_loader(num_workers=num_workers, device=torch.device("cuda")))
    assert all(batch.images.is_cuda and batch.labels.is_cuda and not batch.sample_ids.is_cuda for batch in batches)
    assert _by_step([replace(batch, images=batch.images.cpu()) for batch in batches]) == expected


@pytest.mark.gpu
def test_decoding_on_a_gpu() -> None:
    data = SmoothFaces()
    for batch in _loader(data, image_size=(32, 32), device=torch.device("cuda"), decode="gpu", num_workers=1):
        for image, index in zip(batch.images.cpu().numpy(), batch.sample_ids.tolist(), strict=True):
            pixels = decode_image(data[index][0], (32, 32), "x")
            assert np.abs(image.astype(int) - pixels.astype(int)).max() < 16


class SmoothFaces(Faces):
    """JPEG images, but for every fifth."""

    def __init__(self) -> None:
        super().__init__()
        rise = np.add.outer(np.arange(32), np.arange(32)).astype(np.uint8)
        for number in range(len(self.images)):
            pixels = np.stack([rise * 2, rise + number, rise[::-1]], axis=-1)
            suffix = ".jpg" if number % 5 else ".png"
            self.images[number] = bytes(cv2.imencode(suffix, pixels)[1])


class StandInDecoder:
    """Decodes on the CPU what a GPU would; refuses everything from the `num_good`-th call on."""

    def __init__(self, num_good: int = 1000) -> None:
        self.sizes: list[int] = []
        self.num_good = num_good

    def __call__(self, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        self.sizes.append(len(encoded))
        if len(self.sizes) > self.num_good:
            raise RuntimeError("nvJPEG says no\nmore")
        images = [decode_image(each.numpy().tobytes(), (32, 32), "x") for each in encoded]
        return [torch.from_numpy(image).permute(2, 0, 1) for image in images]


@pytest.mark.parametrize("num_good", [1000, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_images_left_encoded(num_workers: int, num_good: int, caplog: pytest.LogCaptureFixture) -> None:
    data, decoder = SmoothFaces(), StandInDecoder(num_good)
    plain = _by_step(_kept(_loader(data, image_size=(32, 32))))
    loader = _loader(data, image_size=(32, 32), num_workers=num_workers)
    loader._is_decoding_on_gpu = True
    loader._delivery = lambda ring: DecodingDelivery(ring, data, torch.device("cpu"), decoder)  # type: ignore[method-assign]
    batches = list(loader)
    assert _by_step(batches) == plain
    wanted = [sum(bool(index % 5) for index in batch.sample_ids.tolist()) for batch in batches]
    assert decoder.sizes == wanted
    assert caplog.text.count("the GPU refused to decode a micro-batch (nvJPEG says no)") == (num_good == 3)
    assert all(batch.labels.tolist() == [index % 5 for index in batch.sample_ids.tolist()] for batch in batches)


def test_what_a_gpu_may_decode() -> None:
    pixels = np.zeros((16, 16, 3), dtype=np.uint8)
    jpeg = bytes(cv2.imencode(".jpg", pixels)[1])
    exif = jpeg[:2] + b"\xff\xe1\0\x08Exif\0\0" + jpeg[2:]
    adobe = jpeg[:2] + b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0" + jpeg[2:]
    frame = jpeg.index(b"\xff\xc0")
    four = jpeg[: frame + 9] + b"\x04" + jpeg[frame + 10 :]
    grey = bytes(cv2.imencode(".jpg", pixels[..., 0])[1])
    progressive = bytes(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1])
    assert [can_gpu_decode(each) for each in (jpeg, grey, progressive)] == [True] * 3
    assert [can_gpu_decode(each) for each in (exif, adobe, four, make_image(0), b"", jpeg[:20])] == [False] * 6


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
        ({"decode": "tpu"}, 'decode must be "cpu" or "gpu", got \'tpu\''),
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


def test_of_a_streamed_set_each_process_has_the_same_rows_of_every_micro_batch(tmp_path: Path) -> None:
    class Streamed(Faces):
        is_streamed = True

        def __getitem__(self, index: int) -> tuple[bytes, int]:
            (tmp_path / f"{os.getpid()}_{index}").touch()
            return super().__getitem__(index)

    order = Uniform().order(Streamed(24), seed=3, batch_size=8)
    plan = BatchPlan(order, batch_size=8)
    with TrainLoader(Streamed(24), plan, image_size=SIZE, total_steps=3, num_workers=3) as loader:
        batches = [batch.sample_ids.numpy() for batch in loader]
    read: dict[str, set[int]] = {}
    for path in tmp_path.iterdir():
        process, index = path.name.split("_")
        read.setdefault(process, set()).add(int(index))
    rows = [{int(ids[row]) for ids in batches for row in part} for part in (range(3), range(3, 6), range(6, 8))]
    assert sorted(map(sorted, read.values())) == sorted(map(sorted, rows))
