"""Kept embeddings: what is read back, what they belong to, interruptions and kills, ranks, full disks."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gkd.core.distributed import end_process
from gkd.core.errors import CheckpointError, DataError
from gkd.data import RecordFile
from gkd.inference import embedding_files, embedding_filling
from gkd.inference.embedding_files import Origin, check_origin, missing_bytes, origin_of, read_origin, store_bytes
from gkd.inference.embedding_store import EmbeddingStore, find_embeddings
from gkd.models import InputSpec
from tests.inference.test_class_centres import SPEC, Flat, default_faces, picture, slow_views, write_faces

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
RELATIVE_ERROR = {"float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture
def faces(tmp_path: Path) -> RecordFile:
    return write_faces(tmp_path / "train.rec", default_faces())


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_files, "BLOCK_SIZE", 4)


def find(folder: Path, dataset: RecordFile, backbone: nn.Module | None = None, **options: object) -> EmbeddingStore:
    return find_embeddings(folder, backbone or Flat(), SPEC, dataset, device=CPU, **options)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def random_store(folder: Path, num_images: int, embedding_dim: int, dtype: str) -> tuple[EmbeddingStore, Tensor]:
    """A full store of random rows, and these in fp32."""
    origin = Origin("data", "network", "input", num_images, embedding_dim, dtype)
    store = EmbeddingStore(folder, origin)
    rows = torch.randn(num_images, 2, embedding_dim, generator=torch.Generator().manual_seed(0))
    kept = rows.to(embedding_files.DTYPES[dtype])
    (folder / origin.embeddings_name).write_bytes(kept.view(torch.int16).numpy().tobytes())
    (folder / "done.u8").write_bytes(b"\1" * origin.num_blocks)
    return store, kept.float()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_read_is_what_the_network_gave(tmp_path: Path, faces: RecordFile, dtype: str) -> None:
    store = find(tmp_path / "kept", faces, dtype=dtype)
    views = slow_views(faces)
    ids = torch.randint(0, len(faces), (60,))
    flips = torch.rand(60) < 0.5
    expected = np.stack([views[int(i)][int(f)] for i, f in zip(ids, flips, strict=True)])
    rows = store.lookup(ids, flips)
    assert rows.dtype == torch.float32
    tolerance = RELATIVE_ERROR[dtype] * np.abs(expected) + 1e-6
    assert (np.abs(rows.numpy() - expected) <= tolerance).all()
    assert store.has_embedding().all()
    assert store.labels.tolist() == faces.labels.tolist()


@settings(deadline=None, max_examples=30)
@given(
    num_images=st.integers(1, 40),
    dim=st.integers(1, 900),
    dtype=st.sampled_from(["float16", "bfloat16"]),
    is_slow=st.booleans(),
    data=st.data(),
)
def test_lookup_is_indexing(
    tmp_path_factory: pytest.TempPathFactory, num_images: int, dim: int, dtype: str, is_slow: bool, data: st.DataObject
) -> None:
    store, rows = random_store(tmp_path_factory.mktemp("store"), num_images, dim, dtype)
    store._is_slow = is_slow  # rows are asked for ahead
    ids = data.draw(st.lists(st.integers(0, num_images - 1), max_size=20))
    flips = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    found = store.lookup(torch.tensor(ids, dtype=torch.int64), torch.tensor(flips, dtype=torch.bool))
    expected = [rows[i, int(f)] for i, f in zip(ids, flips, strict=True)]
    assert torch.equal(found, torch.stack(expected) if expected else torch.empty(0, dim))
    assert np.array_equal(store.views(np.array(ids, np.int64)), rows[ids].numpy())
    assert np.array_equal(store.views(slice(1, 3)), rows[1:3].numpy())


@pytest.mark.parametrize("image", [-1, 25, 2**40])
def test_an_image_that_is_not_there_is_named(tmp_path: Path, faces: RecordFile, image: int) -> None:
    store = find(tmp_path / "kept", faces)
    with pytest.raises(DataError, match=rf"has embeddings of 25 images, and image {image} was asked for"):
        store.lookup(torch.tensor([3, image]), torch.tensor([False, False]))


def test_an_image_without_embedding_is_named(tmp_path: Path) -> None:
    broken = default_faces()
    broken[5] = (b"\xff\xd8 no image", broken[5][1])
    store = find(tmp_path / "kept", write_faces(tmp_path / "broken.rec", broken), is_skipping=True)
    assert np.flatnonzero(~store.has_embedding()).tolist() == [5]
    assert np.isnan(store.views(np.array([5]))).all()
    assert store.lookup(torch.tensor([4, 6]), torch.tensor([False, True])).isfinite().all()
    with pytest.raises(DataError, match="has no embedding of image 5, which could not be read"):
        store.lookup(torch.tensor([4, 5]), torch.tensor([False, True]))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"backbone": Flat(1)}, "network: "),
        ({"spec": InputSpec(color="bgr")}, "input: rgb, mean 127.5, std 127.5, 8x8 there, bgr"),
        ({"dtype": "bfloat16"}, "dtype: float16 there, bfloat16 now"),
        ({"precision": "bf16"}, "precision: fp32 there, bf16 now"),
        ({"num_faces": 24}, "num_images: 25 there, 24 now"),
        ({"seed": 9}, "data: "),
        ({"backbone": Flat(0, 7)}, "embedding_dim: 6 there, 7 now"),
    ],
)
def test_embeddings_of_another_origin_are_refused_saying_what_differs(
    tmp_path: Path, faces: RecordFile, change: dict[str, object], told: str
) -> None:
    find(tmp_path / "kept", faces)
    options = dict(change)
    backbone, spec = options.pop("backbone", Flat()), options.pop("spec", SPEC)
    others = default_faces()[: options.pop("num_faces", None)]  # type: ignore[misc]
    if "seed" in options:
        others[3] = (picture(77, options.pop("seed")), others[3][1])  # type: ignore[arg-type]
    dataset = write_faces(tmp_path / "other.rec", others)
    before = contents(tmp_path / "kept")
    with pytest.raises(CheckpointError, match="name another folder, or remove this one") as refused:
        find_embeddings(tmp_path / "kept", backbone, spec, dataset, device=CPU, **options)  # type: ignore[arg-type]
    assert told in str(refused.value)
    assert contents(tmp_path / "kept") == before


def test_a_store_of_another_version_is_refused(tmp_path: Path, faces: RecordFile) -> None:
    find(tmp_path / "kept", faces)
    path = tmp_path / "kept" / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    with pytest.raises(CheckpointError, match="has version 1 and this gkd reads version 2; remove the folder"):
        find(tmp_path / "kept", faces)


def test_bf16_arithmetic_is_used_where_asked(tmp_path: Path, faces: RecordFile) -> None:
    seen: list[bool] = []

    class Watched(Flat):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    rough = find(tmp_path / "rough", faces, Watched(), precision="bf16")
    assert set(seen) == {True}
    exact = find(tmp_path / "exact", faces, Watched())
    assert set(seen[len(seen) // 2 :]) == {False}
    gap = np.abs(rough.views(slice(None)) - exact.views(slice(None)))
    assert 0 < gap.max() < 0.03


def test_it_is_read_from_a_folder_that_cannot_be_written(tmp_path: Path, faces: RecordFile) -> None:
    first = find(tmp_path / "kept", faces).views(slice(None))
    code = (
        "import sys, torch; from pathlib import Path; from gkd.data import RecordFile; "
        "from tests.inference.test_embedding_store import find; "
        "print(float(find(Path(sys.argv[1]), RecordFile(Path(sys.argv[2]))).views(slice(None)).sum()))"
    )
    for path in (tmp_path / "kept").iterdir():
        path.chmod(0o444)
    (tmp_path / "kept").chmod(0o555)
    user = {} if os.getuid() else {"user": 65534, "group": 65534}
    try:
        for parent in (*tmp_path.parents[:3], tmp_path):
            parent.chmod(0o755)
        command = [sys.executable, "-c", code, str(tmp_path / "kept"), str(faces.path)]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "XDG_CACHE_HOME": "/tmp"}
        if user and not os.access(sys.executable, os.X_OK, effective_ids=True):
            pytest.skip("another user could not run this interpreter")
        result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        assert float(result.stdout) == pytest.approx(float(first.sum()))
    finally:
        (tmp_path / "kept").chmod(0o755)


# Interruptions


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("allowed", [0, 1, 2, 5, 9])
def test_an_interrupted_filling_ends_in_the_same_bytes(tmp_path: Path, faces: RecordFile, allowed: int) -> None:
    class Failing(Flat):
        def forward(self, images: Tensor) -> Tensor:
            if self.calls >= allowed:
                raise RuntimeError("power cut")
            return super().forward(images)

    with pytest.raises(RuntimeError, match="power cut"):
        find(tmp_path / "kept", faces, Failing())
    backbone = Flat()
    find(tmp_path / "kept", faces, backbone)
    find(tmp_path / "whole", faces)
    assert contents(tmp_path / "kept") == contents(tmp_path / "whole")
    assert backbone.calls == 2 * (7 - allowed // 2)  # whole blocks are not embedded again


_FILL = """
import sys, time, torch
from pathlib import Path
from gkd.data import RecordFile
from gkd.inference import embedding_files
from tests.inference.test_class_centres import Flat
from tests.inference.test_embedding_store import find
embedding_files.BLOCK_SIZE = 4
class Slow(Flat):
    def forward(self, images):
        time.sleep(0.02)
        return super().forward(images)
torch.set_num_threads(1)
Path(sys.argv[3]).touch()
find(Path(sys.argv[1]), RecordFile(Path(sys.argv[2])), Slow())
"""


def test_a_filling_that_is_killed_ends_in_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [(picture(label, image), label) for label in range(6) for image in range(8)]
    faces = write_faces(tmp_path / "many.rec", many)
    chance = random.Random(5)
    num_killed = 0
    for attempt in range(5):
        started = tmp_path / f"started{attempt}"
        command = [sys.executable, "-c", _FILL, str(tmp_path / "kept"), str(faces.path), str(started)]
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        num_killed += process.wait() == -signal.SIGKILL
    assert num_killed
    monkeypatch.setattr(embedding_files, "BLOCK_SIZE", 4)
    find(tmp_path / "kept", faces)
    find(tmp_path / "whole", faces)
    assert contents(tmp_path / "kept") == contents(tmp_path / "whole")


def _on_rank(rank: int, num_ranks: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank))
    embedding_files.BLOCK_SIZE = 4
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous{num_ranks}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=num_ranks)
    faces = RecordFile(folder / "train.rec")
    find(folder / f"ranks{num_ranks}", faces)
    if rank == 1:  # one rank's disk is full
        embedding_filling.os.pwrite = _full_disk  # type: ignore[assignment]
    try:
        find(folder / f"full{num_ranks}", faces)
    except Exception as error:
        (folder / f"error{num_ranks}_{rank}").write_text(f"{type(error).__name__}: {error}")
    torch.distributed.destroy_process_group()
    end_process(0)


def _full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_number_of_ranks_changes_no_byte_and_a_failure_reaches_all(
    tmp_path: Path, faces: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    for num_ranks in (2, 3):
        mp.spawn(_on_rank, args=(num_ranks, tmp_path), nprocs=num_ranks)
    monkeypatch.setattr(embedding_files, "BLOCK_SIZE", 4)
    find(tmp_path / "alone", faces)
    for num_ranks in (2, 3):
        assert contents(tmp_path / f"ranks{num_ranks}") == contents(tmp_path / "alone")
        for rank in range(num_ranks):
            text = (tmp_path / f"error{num_ranks}_{rank}").read_text()
            assert "DataError" in text
            assert "cannot be written: No space left on device; make room and run again" in text
        find(tmp_path / f"full{num_ranks}", faces)
        assert contents(tmp_path / f"full{num_ranks}") == contents(tmp_path / "alone")


# The disk


def test_space_is_counted_for_what_is_still_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedding_files, "BLOCK_SIZE", 512)
    origin = Origin("data", "network", "input", 4096, 64)
    store = EmbeddingStore(tmp_path / "kept", origin)
    assert store_bytes(origin) == 4096 * (2 * 64 * 2 + 4) + 8
    empty = missing_bytes(tmp_path / "kept", origin)
    assert empty >= store_bytes(origin) - 4096
    with (tmp_path / "kept" / "embeddings.f16").open("r+b") as file:
        file.write(b"\1" * (2048 * 2 * 64 * 2))
        os.fsync(file.fileno())
    half = missing_bytes(tmp_path / "kept", origin)
    assert half <= empty - 2048 * 2 * 64 * 2 + 8192
    monkeypatch.setattr("gkd.inference.embedding_store.free_bytes", lambda folder: half - 1)
    monkeypatch.setattr(embedding_files, "free_bytes", lambda folder: half - 1)
    with pytest.raises(DataError, match=r"embeddings of 4,096 images take .* MB more and .* MB are free"):
        store._require_space()


def test_a_short_write_is_gone_on_with(tmp_path: Path, faces: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(embedding_filling.os, "pwrite", lambda fd, view, offset: pwrite(fd, view[:7], offset))
    find(tmp_path / "kept", faces)
    monkeypatch.undo()
    find(tmp_path / "whole", faces)
    assert contents(tmp_path / "kept") == contents(tmp_path / "whole")


# Descriptions


def test_an_origin_is_read_back(tmp_path: Path, faces: RecordFile) -> None:
    store = find(tmp_path / "kept", faces, dtype="bfloat16")
    assert read_origin(tmp_path / "kept") == store.origin
    check_origin(tmp_path / "kept", origin_of(Flat(), SPEC, faces, dtype="bfloat16"))


@pytest.mark.parametrize(
    "change", [{"dtype": "float8"}, {"num_images": 0}, {"embedding_dim": 2.5}, {"data": 3}, {"precision": None}]
)
def test_a_damaged_origin_is_refused(tmp_path: Path, faces: RecordFile, change: dict[str, object]) -> None:
    find(tmp_path / "kept", faces)
    path = tmp_path / "kept" / "store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r"store.json: damaged"):
        read_origin(tmp_path / "kept")


def test_a_folder_without_embeddings_says_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no embeddings \(store.json is missing\)"):
        read_origin(tmp_path)
