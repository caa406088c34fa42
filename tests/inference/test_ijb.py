"""IJB with a network: alignment, embeddings, options, failures, and two ranks equal to one."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from gkd.core.distributed import end_process
from gkd.core.errors import ConfigError, DataError, GkdError
from gkd.data.alignment import align_face, template
from gkd.data.ijb_lists import IjbFaces, read_ijb_faces, read_ijb_pairs
from gkd.data.ijb_miniature import make_miniature
from gkd.evaluation import FAR_TARGETS
from gkd.evaluation.ijb import IjbOptions, IjbResult
from gkd.inference import ijb_embed
from gkd.inference.ijb_embed import align_loosely, embed_ijb, evaluate_ijb
from gkd.models import InputSpec
from tests.reference import ijb as reference
from tests.reference import verification as verification_reference

SIDE = 24


class TinyBackbone(nn.Module):
    """A few weights, BatchNorm, and an embedding that mirroring changes; `broken_rank` raises."""

    def __init__(self, size: tuple[int, int] = (SIDE, SIDE), broken_rank: int | None = None) -> None:
        super().__init__()
        self.embedding_dim = 6
        self.input_size = size
        self.broken_rank = broken_rank
        self.conv = nn.Conv2d(3, 4, 3, stride=4)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 6 * 6, 6)

    def forward(self, images: Tensor) -> Tensor:
        if self.broken_rank is not None and dist.get_rank() == self.broken_rank:
            raise RuntimeError("out of memory")
        result: Tensor = self.fc(self.norm(self.conv(images)).flatten(1))
        return result


def make_backbone(**options: Any) -> TinyBackbone:
    torch.manual_seed(0)
    return TinyBackbone(**options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_miniature(tmp_path_factory.mktemp("ijb") / "IJBC", 4, 7, seed=1)


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folder, tmp_path / "IJBC"))


def plain_embeddings(backbone: TinyBackbone, faces: IjbFaces, flip: bool, color: str = "rgb") -> np.ndarray:
    """One face at a time, with nothing but OpenCV and the network."""
    backbone.eval()
    rows = []
    for index in range(len(faces)):
        photo = cv2.imread(str(faces.path(index)))
        aligned = align_face(photo, faces.landmarks[index], SIDE)
        pixels = aligned if color == "bgr" else aligned[..., ::-1]
        views = [pixels, pixels[:, ::-1]] if flip else [pixels]
        tensors = [torch.from_numpy((view / 127.5 - 1).transpose(2, 0, 1).copy()).float()[None] for view in views]
        with torch.no_grad():
            rows.append(sum(backbone(tensor) for tensor in tensors)[0].numpy())
    return np.array(rows)


class TestEmbeddings:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("color", ["rgb", "bgr"])
    def test_equal_one_face_at_a_time(self, folder: Path, flip: bool, color: Any) -> None:
        faces, backbone = read_ijb_faces(folder), make_backbone()
        rows = embed_ijb(backbone, InputSpec(color=color), faces, batch_size=5, flip=flip)
        assert (rows.dtype, rows.shape) == (np.float32, (28, 6))
        np.testing.assert_allclose(rows, plain_embeddings(backbone, faces, flip, color), rtol=1e-4, atol=1e-5)

    def test_threads_and_batches_change_nothing_but_rounding(self, folder: Path) -> None:
        faces = read_ijb_faces(folder)
        whole = embed_ijb(make_backbone(), InputSpec(), faces, batch_size=64)
        for batch_size, num_threads in ((1, 1), (9, 3), (28, 8)):
            rows = embed_ijb(make_backbone(), InputSpec(), faces, batch_size=batch_size, num_threads=num_threads)
            np.testing.assert_allclose(rows, whole, rtol=1e-4, atol=1e-5)

    def test_sharing_in_parts_changes_nothing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        faces = read_ijb_faces(folder)
        whole = embed_ijb(make_backbone(), InputSpec(), faces)
        monkeypatch.setattr(ijb_embed, "_SHARED_BYTES", 30)
        np.testing.assert_array_equal(embed_ijb(make_backbone(), InputSpec(), faces), whole)

    def test_the_network_returns_to_its_mode(self, folder: Path) -> None:
        backbone = make_backbone()
        backbone.train()
        statistics = backbone.norm.running_mean.clone()
        embed_ijb(backbone, InputSpec(), read_ijb_faces(folder))
        assert backbone.training
        assert torch.equal(backbone.norm.running_mean, statistics)

    def test_the_first_damaged_photo_is_named(self, own_folder: Path) -> None:
        faces = read_ijb_faces(own_folder)
        for index, content in ((20, b""), (11, b"no image"), (12, faces.path(12).read_bytes()[:300])):
            faces.path(index).write_bytes(content)
        with pytest.raises(DataError, match=r"12\.jpg \(template \d+\): not a JPEG, PNG, BMP or WebP image"):
            embed_ijb(make_backbone(), InputSpec(), faces, batch_size=3)
        faces.path(11).unlink()
        with pytest.raises(DataError, match=r"12\.jpg \(template \d+\): .*no such file"):
            embed_ijb(make_backbone(), InputSpec(), faces, batch_size=3)

    def test_wrong_settings(self, folder: Path) -> None:
        faces = read_ijb_faces(folder)
        with pytest.raises(ConfigError, match="must be at least 1, got 0 and 4"):
            embed_ijb(make_backbone(), InputSpec(), faces, batch_size=0)
        with pytest.raises(ConfigError, match="must be at least 1, got 64 and 0"):
            embed_ijb(make_backbone(), InputSpec(), faces, num_threads=0)
        with pytest.raises(ConfigError, match="aligned to squares, but the backbone takes 24x20 pixels"):
            embed_ijb(make_backbone(size=(24, 20)), InputSpec(), faces)

    def test_an_error_of_the_network_is_raised_as_it_is(self, folder: Path) -> None:
        backbone = make_backbone()
        backbone.fc = nn.Linear(3, 6)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            embed_ijb(backbone, InputSpec(), read_ijb_faces(folder))


class TestAlignment:
    def test_is_that_of_the_alignment_tool(self) -> None:
        photo = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
        for shift in (-20.0, 0.0, 33.3):
            points = template() @ np.array([[0.9, 0.2], [-0.2, 0.9]]) + shift
            aligned, is_inside = align_loosely(photo, points, 112)
            assert is_inside
            np.testing.assert_array_equal(aligned, align_face(photo, points, 112))

    @pytest.mark.parametrize("shift", [(-500, 0), (0, -500), (500, 0), (0, 500)])
    def test_landmarks_outside_of_the_photo_give_black(self, shift: tuple[int, int]) -> None:
        aligned, is_inside = align_loosely(np.full((150, 150, 3), 200, np.uint8), template() + shift, 112)
        assert not is_inside
        assert not aligned.any()

    def test_faces_outside_of_their_photos_are_counted(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        faces = read_ijb_faces(folder)
        embed_ijb(make_backbone(), InputSpec(), faces)
        assert "outside" not in caplog.text
        landmarks = faces.landmarks.copy()
        landmarks[[4, 9]] += 5000
        embed_ijb(make_backbone(), InputSpec(), replace(faces, landmarks=landmarks))
        told = f"2 faces have their landmarks outside of the photo and are black, such as {faces.describe(4)}"
        assert told in caplog.text


class TestEvaluation:
    @pytest.mark.parametrize("use_norm_score", [True, False])
    @pytest.mark.parametrize("use_detector_score", [True, False])
    @pytest.mark.parametrize("use_flip_test", [True, False])
    def test_equals_the_loops(
        self, folder: Path, use_flip_test: bool, use_detector_score: bool, use_norm_score: bool
    ) -> None:
        options = IjbOptions(use_flip_test, use_detector_score, use_norm_score)
        faces, backbone = read_ijb_faces(folder), make_backbone()
        result = evaluate_ijb(backbone, InputSpec(), folder, options=options, batch_size=8)
        vectors = reference.template_vectors(
            plain_embeddings(backbone, faces, use_flip_test),
            faces.template_of.tolist(),
            faces.media_of.tolist(),
            faces.detector_scores.tolist() if use_detector_score else None,
            use_norm_score,
        )
        pairs = read_ijb_pairs(faces)
        scores = reference.pair_scores(vectors, pairs.left.tolist(), pairs.right.tolist())
        expected = [verification_reference.tar_at_far(scores, pairs.is_same.tolist(), far) for far in FAR_TARGETS]
        assert list(result.tar_at_far.values()) == expected
        threshold = reference.threshold_at_far(scores, pairs.is_same.tolist(), 1e-1)
        assert result.threshold_at_far[1e-1] == pytest.approx(threshold, abs=1e-5)
        assert (result.name, result.num_images, result.num_templates) == ("IJBC", 28, 8)
        assert (result.num_pairs, result.num_same, result.options) == (16, 4, options)
        assert list(result.seconds) == ["embedding", "pooling", "scoring", "rates"]

    def test_equal_photos_of_a_person_are_verified(self, own_folder: Path) -> None:
        """With a person's images all the same, the person's templates score 1."""
        faces = read_ijb_faces(own_folder)
        points = own_folder / "meta" / "ijbc_name_5pts_score.txt"
        lines = points.read_text().splitlines()
        for index in range(len(faces)):
            first = index // 7 * 7
            shutil.copy(faces.path(first), faces.path(index)) if index != first else None
            lines[index] = " ".join([faces.image_names[index], *lines[first].split()[1:]])
        points.write_text("\n".join(lines))
        result = evaluate_ijb(make_backbone(), InputSpec(), own_folder)
        assert result.tar_at_far[1e-1] == 1.0
        assert result.threshold_at_far[1e-1] == pytest.approx(1.0, abs=1e-5)

    def test_pairs_are_read_before_images_are_embedded(self, own_folder: Path) -> None:
        (own_folder / "meta" / "ijbc_template_pair_label.txt").write_text("1 2 3\n")
        with pytest.raises(DataError, match=r"ijbc_template_pair_label\.txt: line 1"):
            evaluate_ijb(make_backbone(broken_rank=0), InputSpec(), own_folder)

    def test_unfit_embeddings_name_the_set(self, folder: Path) -> None:
        backbone = make_backbone()
        with torch.no_grad():
            backbone.fc.weight.fill_(torch.nan)
        with pytest.raises(DataError, match=r"IJBC: 28 of 28 images \(0, 1, .*\) have an embedding that is NaN"):
            evaluate_ijb(backbone, InputSpec(), folder)


def _evaluate_on_rank(rank: int, folder: str, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/store", rank=rank, world_size=2)
    faces = read_ijb_faces(folder)
    rows = embed_ijb(make_backbone(), InputSpec(), faces, batch_size=3)
    result = evaluate_ijb(make_backbone(), InputSpec(), folder, batch_size=3)
    # Batch 1 is of rank 1, batch 2 of rank 0.
    damaged = replace(faces, image_names=("1.jpg", "no.jpg", "no.jpg", "4.jpg", *faces.image_names[4:]))
    no_pairs, own_only = Path(out) / "no_pairs", Path(folder) if rank == 0 else Path(out) / "nothing"
    messages = [
        _message(lambda: embed_ijb(make_backbone(), InputSpec(), damaged, batch_size=1)),
        _message(lambda: embed_ijb(make_backbone(broken_rank=1), InputSpec(), faces, batch_size=3)),
        _message(lambda: evaluate_ijb(make_backbone(), InputSpec(), no_pairs, batch_size=3)),
        _message(lambda: evaluate_ijb(make_backbone(), InputSpec(), own_only, batch_size=3)),
    ]
    content = {"rows": torch.from_numpy(rows), "messages": messages, "json": _without_seconds(result)}
    torch.save(content, f"{out}/rank{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def _message(call: Any) -> str:
    try:
        call()
    except (GkdError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def _without_seconds(result: IjbResult) -> dict[str, Any]:
    return replace(result, seconds={}).to_json()


def test_two_ranks_equal_one_and_fail_together(own_folder: Path, tmp_path: Path) -> None:
    no_pairs = Path(shutil.copytree(own_folder, tmp_path / "no_pairs"))
    (no_pairs / "meta" / "ijbc_template_pair_label.txt").unlink()
    mp.spawn(_evaluate_on_rank, args=(str(own_folder), str(tmp_path)), nprocs=2, join=True)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    faces = read_ijb_faces(own_folder)
    expected = embed_ijb(make_backbone(), InputSpec(), faces, batch_size=3)
    result = evaluate_ijb(make_backbone(), InputSpec(), own_folder, batch_size=3)
    for outcome in (first, second):
        np.testing.assert_array_equal(outcome["rows"].numpy(), expected)
        assert outcome["json"] == _without_seconds(result)
        assert "no.jpg" in outcome["messages"][0]
        assert f"template {faces.template_ids[faces.template_of[1]]})" in outcome["messages"][0]
        assert outcome["messages"][2].endswith("ijbc_template_pair_label.txt: no such file")
        assert outcome["messages"][3] == f"DataError: {tmp_path / 'nothing'}: no such folder"
    assert first["messages"][0] == second["messages"][0]
    assert first["messages"][1] == "GkdError: embedding failed on rank 1: RuntimeError: out of memory"
    assert second["messages"][1] == "RuntimeError: out of memory"
