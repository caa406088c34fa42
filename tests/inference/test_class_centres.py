"""Class centres: values against a slow reference, resumption, reuse, refusals, ranks, and the report of label noise."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn

from gkd.core.distributed import end_process
from gkd.core.errors import CheckpointError, ConfigError, DataError, GkdError
from gkd.core.files import locked_folder
from gkd.data import RecordFile, RecordWriter, TarShards
from gkd.data.tar_writing import write_shards
from gkd.inference import embedding_files
from gkd.inference.class_centres import ClassCentres, find_class_centres
from gkd.inference.embedding_files import origin_of
from gkd.models import InputSpec, load_head

SIZE = 8
SPEC = InputSpec()


class Flat(nn.Module):
    """A fixed projection of the pixels, which mirroring changes."""

    def __init__(self, seed: int = 0, embedding_dim: int = 6) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.input_size = (SIZE, SIZE)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(embedding_dim, 3 * SIZE * SIZE, generator=generator))
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images.flatten(1) @ self.weight.T


class Counting(Flat):
    """Fails after a number of batches, as a machine that goes down would."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed = allowed

    def forward(self, images: Tensor) -> Tensor:
        if self.calls >= self.allowed:
            raise RuntimeError("power cut")
        return super().forward(images)


def picture(identity: int, image: int, suffix: str = ".png") -> bytes:
    base = np.random.default_rng(identity).integers(40, 216, (SIZE, SIZE, 3))
    noise = np.random.default_rng((identity, image)).integers(-25, 26, (SIZE, SIZE, 3))
    return cv2.imencode(suffix, np.clip(base + noise, 0, 255).astype(np.uint8))[1].tobytes()


def write_faces(path: Path, faces: list[tuple[bytes, int]]) -> RecordFile:
    with RecordWriter(path) as writer:
        for encoded, label in faces:
            writer.write(label, encoded)
    return RecordFile(path)


def default_faces() -> list[tuple[bytes, int]]:
    return [(picture(label, image), label) for label in range(5) for image in range(3 + label)]


@pytest.fixture
def faces(tmp_path: Path) -> RecordFile:
    return write_faces(tmp_path / "train.rec", default_faces())


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("embedding_files", "class_centres"):
        monkeypatch.setattr(f"gkd.inference.{module}.BLOCK_SIZE", 4)


def find(folder: Path, dataset: RecordFile, backbone: nn.Module | None = None, **settings: object) -> ClassCentres:
    return find_class_centres(
        folder,
        backbone or Flat(),
        SPEC,
        dataset,
        device=torch.device("cpu"),
        **settings,  # type: ignore[arg-type]
    )


def slow_views(dataset: RecordFile) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Unit embedding of each image and of its mirror image in float64, and its label."""
    weight = Flat().weight.detach().double().numpy()
    views = []
    for index in range(len(dataset)):
        encoded, label = dataset[index]
        pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1].astype(np.float64)
        both = [weight @ ((p - 127.5) / 127.5).transpose(2, 0, 1).ravel() for p in (pixels, pixels[:, ::-1])]
        views.append((both[0] / np.linalg.norm(both[0]), both[1] / np.linalg.norm(both[1]), label))
    return views


def slow_centres(dataset: RecordFile, left_out: set[int] = frozenset()) -> np.ndarray:  # type: ignore[assignment]
    centres = np.zeros((dataset.num_identities, 6))
    for index, (plain, mirrored, label) in enumerate(slow_views(dataset)):
        if index not in left_out:
            centres[label] += plain + mirrored
    return centres / np.linalg.norm(centres, axis=1, keepdims=True)


def slow_own_cosine(dataset: RecordFile, index: int) -> float:
    views = slow_views(dataset)
    own = views[index][0] + views[index][1]
    others = sum(v[0] + v[1] for i, v in enumerate(views) if i != index and v[2] == views[index][2])
    return float(own @ others / np.linalg.norm(own) / np.linalg.norm(others))


def test_centres_are_the_unit_means_of_both_views(tmp_path: Path, faces: RecordFile) -> None:
    centres = find(tmp_path / "centres", faces)
    # float16 keeps about three digits of each number; a mean over several is closer.
    assert np.abs(centres.weights.numpy() - slow_centres(faces)).max() < 1e-3
    assert centres.weights.dtype == torch.float32
    np.testing.assert_allclose(torch.linalg.vector_norm(centres.weights, dim=1), 1, atol=1e-6)


def test_kept_embeddings_are_those_of_the_network(tmp_path: Path, faces: RecordFile) -> None:
    store = find(tmp_path / "centres", faces).store
    ids, flips = torch.tensor([7, 0, 7, 24]), torch.tensor([False, True, True, False])
    rows = store.lookup(ids, flips)
    views = slow_views(faces)
    expected = [views[int(i)][int(f)] for i, f in zip(ids, flips, strict=True)]
    assert rows.dtype == torch.float32
    assert np.abs(rows.numpy() - np.stack(expected)).max() < 1e-3


def test_a_second_call_runs_nothing(tmp_path: Path, faces: RecordFile) -> None:
    first = find(tmp_path / "centres", faces)
    backbone = Flat()
    again = find(tmp_path / "centres", faces, backbone)
    assert backbone.calls == 0
    assert torch.equal(again.weights, first.weights)


def test_an_interrupted_pass_is_taken_up(tmp_path: Path, faces: RecordFile) -> None:
    with pytest.raises(RuntimeError, match="power cut"):
        find(tmp_path / "centres", faces, Counting(allowed=5))
    assert not (tmp_path / "centres" / "centres.pt").exists()
    backbone = Flat()
    centres = find(tmp_path / "centres", faces, backbone)
    whole = find(tmp_path / "whole", faces)
    # 25 images are 7 blocks of two views; the 2 finished ones are not embedded again.
    assert backbone.calls == 2 * (7 - 2)
    assert torch.equal(centres.weights, whole.weights)


@pytest.mark.parametrize("change", ["network", "data", "input"])
def test_centres_of_something_else_are_refused(tmp_path: Path, faces: RecordFile, change: str) -> None:
    find(tmp_path / "centres", faces)
    backbone, spec, dataset = Flat(), SPEC, faces
    if change == "network":
        backbone = Flat(seed=1)
    if change == "input":
        spec = InputSpec(color="bgr")
    if change == "data":
        dataset = write_faces(tmp_path / "other.rec", default_faces()[:-1])
    with pytest.raises(CheckpointError, match=rf"another network or of other data \(.*{change}: .* there, .* now"):
        find_class_centres(tmp_path / "centres", backbone, spec, dataset, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("store.json", b"{", "store.json: damaged"),
        ("store.json", b"[]", "is not a store of embeddings"),
        ("store.json", b"[" * 100_000, "store.json: damaged"),
        ("embeddings.f16", b"short", "has 5 bytes instead of"),
        ("done.u8", b"", "has 0 bytes instead of"),
        ("centres.pt", b"no centres", "centres.pt"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, faces: RecordFile, name: str, content: bytes, message: str) -> None:
    find(tmp_path / "centres", faces)
    (tmp_path / "centres" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        find(tmp_path / "centres", faces)


def test_outliers_are_left_out_and_reported(tmp_path: Path) -> None:
    wrong = (picture(3, 99), 1)
    dataset = write_faces(tmp_path / "noisy.rec", [*default_faces()[:7], wrong, *default_faces()[7:]])
    cosines = [slow_own_cosine(dataset, index) for index in range(len(dataset))]
    limit = (sorted(cosines)[0] + sorted(cosines)[1]) / 2
    assert int(np.argmin(cosines)) == 7
    centres = find(tmp_path / "centres", dataset, min_cosine=limit)
    assert np.abs(centres.weights.numpy() - slow_centres(dataset, {7})).max() < 1e-3
    with (tmp_path / "centres" / "label_noise.csv").open(newline="") as file:
        worst = next(iter(csv.DictReader(file)))
    assert (worst["sample_id"], worst["label"], worst["nearest_label"], worst["used"]) == ("7", "1", "3", "0")
    assert float(worst["own_cosine"]) == pytest.approx(cosines[7], abs=2e-3)
    assert "noisy.rec" in worst["where"]
    summary = json.loads((tmp_path / "centres" / "label_noise.json").read_text())
    assert summary["num_left_out"] == 1
    _, meta = load_head(tmp_path / "centres" / f"centres_min{limit:g}.pt")
    assert meta["num_images"] == len(dataset) - 1


def test_a_class_of_outliers_keeps_all_its_images(tmp_path: Path) -> None:
    strangers = [(picture(50 + image, 0), 0) for image in range(2)]
    others = [(picture(1, image), 1) for image in range(4)]
    dataset = write_faces(tmp_path / "train.rec", strangers + others)
    centres = find(tmp_path / "centres", dataset, min_cosine=0.9)
    assert np.abs(centres.weights.numpy()[0] - slow_centres(dataset)[0]).max() < 1e-3


def test_one_person_under_two_labels_is_reported(tmp_path: Path) -> None:
    dataset = write_faces(
        tmp_path / "train.rec",
        [(picture(9 if label == 2 else label, i), label) for label in range(3) for i in range(4)],
    )
    twin = write_faces(
        tmp_path / "twin.rec", [(picture(0 if label == 2 else label, i), label) for label in range(3) for i in range(4)]
    )
    find(tmp_path / "apart", dataset)
    find(tmp_path / "twin", twin)
    assert len((tmp_path / "apart" / "near_centres.csv").read_text().splitlines()) == 1
    assert (tmp_path / "twin" / "near_centres.csv").read_text().splitlines()[1].startswith("0,,2,,1.0000")


def test_an_image_that_does_not_decode_stops_or_is_left_out(tmp_path: Path) -> None:
    broken = default_faces()
    broken[5] = (b"\xff\xd8 no image", broken[5][1])
    dataset = write_faces(tmp_path / "train.rec", broken)
    with pytest.raises(DataError, match="key 6"):
        find(tmp_path / "strict", dataset)
    centres = find(tmp_path / "lenient", dataset, is_skipping=True)
    whole = write_faces(tmp_path / "whole.rec", default_faces())
    assert np.abs(centres.weights.numpy() - slow_centres(whole, {5})).max() < 1e-3
    with pytest.raises(DataError, match="no embedding of image 5"):
        centres.store.lookup(torch.tensor([1, 5]), torch.tensor([False, False]))


def test_an_embedding_without_direction_names_the_image(tmp_path: Path, faces: RecordFile) -> None:
    backbone = Flat()
    with torch.no_grad():
        backbone.weight.fill_(float("nan"))
    with pytest.raises(DataError, match=r"key 1 .*zero or not finite"):
        find(tmp_path / "centres", faces, backbone)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    tmp_path: Path, faces: RecordFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = os.statvfs_result((1, 1, 1, 1, 0, 1, 1, 1, 0, 255))
    monkeypatch.setattr(embedding_files.os, "statvfs", lambda path: full)
    with pytest.raises(DataError, match=r"embeddings of 25 images take .* MB more and .* MB are free"):
        find(tmp_path / "centres", faces)
    assert not (tmp_path / "centres" / "embeddings.f16").exists()


def test_two_makers_do_not_share_a_folder(tmp_path: Path, faces: RecordFile) -> None:
    with (
        locked_folder(tmp_path / "centres", "a", "b"),
        pytest.raises(
            GkdError,
            match=r"teacher.centres.folder: another process is computing a teacher's embeddings in .*; wait for it",
        ),
    ):
        find(tmp_path / "centres", faces)


def test_a_finished_folder_may_be_read_only(tmp_path: Path, faces: RecordFile, monkeypatch: pytest.MonkeyPatch) -> None:
    first = find(tmp_path / "centres", faces)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("written to")

    monkeypatch.setattr(embedding_files.os, "pwrite", refuse)
    monkeypatch.setattr("gkd.core.files.atomic_write", refuse)
    monkeypatch.setattr("gkd.core.files.locked_folder", refuse)
    monkeypatch.setattr("gkd.inference.embedding_files.locked_folder", refuse)
    assert torch.equal(find(tmp_path / "centres", faces).weights, first.weights)


def test_min_cosine_out_of_range_is_refused(tmp_path: Path, faces: RecordFile) -> None:
    with pytest.raises(ConfigError, match=r"teacher.centres.min_cosine must lie in \[-1, 1\), got 1"):
        find(tmp_path / "centres", faces, min_cosine=1.0)


def _on_rank(rank: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", LOCAL_RANK=str(rank))
    embedding_files.BLOCK_SIZE = 4
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    backbone = Flat()
    centres = find(folder / "centres", RecordFile(folder / "train.rec"), backbone)
    torch.save((centres.weights, backbone.calls), folder / f"rank{rank}.pt")
    broken = RecordFile(folder / "broken.rec")
    try:
        find(folder / "broken", broken)
    except DataError as error:
        (folder / f"error{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()
    end_process(0)


def test_two_ranks_share_the_work_and_agree_with_one(tmp_path: Path, faces: RecordFile) -> None:
    broken = default_faces()
    broken[5] = (b"\xff\xd8 no image", broken[5][1])
    write_faces(tmp_path / "broken.rec", broken)
    mp.spawn(_on_rank, args=(tmp_path,), nprocs=2)
    alone = find(tmp_path / "alone", faces)
    calls = []
    for rank in range(2):
        weights, count = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert torch.equal(weights, alone.weights)
        assert "key 6" in (tmp_path / f"error{rank}").read_text()
        calls.append(count)
    assert sorted(calls) == [6, 8]


def test_origin_tells_networks_and_inputs_apart(faces: RecordFile) -> None:
    assert origin_of(Flat(), SPEC, faces) == origin_of(Flat(), SPEC, faces)
    assert origin_of(Flat(1), SPEC, faces).network != origin_of(Flat(), SPEC, faces).network


def test_centres_are_not_made_from_tar_shards_but_taken_from_their_source(tmp_path: Path, faces: RecordFile) -> None:
    write_shards(faces.path, tmp_path / "shards", images_per_shard=3)
    shards = TarShards(str(tmp_path / "shards"))
    with pytest.raises(ConfigError, match=r"tar shards would be fetched over and over; make them with `prepare.py cac"):
        find(tmp_path / "centres", shards)  # type: ignore[arg-type]
    made = find(tmp_path / "centres", faces)
    assert torch.equal(find(tmp_path / "centres", shards).weights, made.weights)  # type: ignore[arg-type]
