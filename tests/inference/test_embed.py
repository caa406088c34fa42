"""Embedding encoded images: values, modes, failures, and two ranks equal to one."""

from __future__ import annotations

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
from gkd.data import decode_image
from gkd.inference.embed import embed_images, evaluate_pairs
from gkd.models import InputSpec

SIZE = (20, 16)


class TinyBackbone(nn.Module):
    """A few weights, BatchNorm (which eval mode must freeze), and an embedding that mirroring changes."""

    def __init__(self, embedding_dim: int = 6) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.input_size = SIZE
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 9 * 7, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.fc(self.norm(self.conv(images)).flatten(1))
        return result


class FailingBackbone(TinyBackbone):
    """Raises on rank 1 only, as a GPU that runs out of memory would."""

    def forward(self, images: Tensor) -> Tensor:
        if dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("out of memory")
        return super().forward(images)


def make_backbone(kind: type[TinyBackbone] = TinyBackbone) -> TinyBackbone:
    torch.manual_seed(0)
    return kind()


def make_images(num_images: int) -> list[bytes]:
    generator = np.random.default_rng(0)
    images = []
    for _ in range(num_images):
        is_written, encoded = cv2.imencode(".png", generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        assert is_written
        images.append(encoded.tobytes())
    return images


class Pairs:
    def __init__(self, images: list[bytes], is_same: np.ndarray) -> None:
        self.images = images
        self.is_same = is_same


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_embeddings_equal_one_image_at_a_time(flip: bool, color: Any) -> None:
    backbone, images = make_backbone(), make_images(7)
    spec = InputSpec(color=color, mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))
    rows = embed_images(backbone, spec, images, batch_size=3, flip=flip)
    assert rows.dtype == np.float32
    assert rows.shape == (7, 6)
    backbone.eval()
    for row, encoded in zip(rows, images, strict=True):
        pixels = decode_image(encoded, SIZE, "test").astype(np.float64)
        pixels = pixels[:, :, ::-1] if color == "bgr" else pixels
        normalised = (pixels - [100.0, 110.0, 120.0]) / [50.0, 60.0, 70.0]
        views = [normalised, normalised[:, ::-1]] if flip else [normalised]
        tensors = [torch.from_numpy(view.transpose(2, 0, 1).copy()).float()[None] for view in views]
        with torch.no_grad():
            expected = sum(backbone(tensor) for tensor in tensors)
        np.testing.assert_allclose(row, expected[0].numpy(), rtol=1e-4, atol=1e-5)


def test_batch_size_changes_nothing_but_rounding() -> None:
    backbone, images = make_backbone(), make_images(9)
    whole = embed_images(backbone, InputSpec(), images, batch_size=64)
    for batch_size in (1, 4, 9):
        rows = embed_images(backbone, InputSpec(), images, batch_size=batch_size)
        np.testing.assert_allclose(rows, whole, rtol=1e-4, atol=1e-5)


def test_each_module_returns_to_its_own_mode() -> None:
    backbone = make_backbone()
    backbone.train()
    backbone.norm.eval()
    statistics = backbone.norm.running_mean.clone()
    embed_images(backbone, InputSpec(), make_images(4))
    assert [module.training for module in backbone.modules()] == [True, True, False, True]
    assert torch.equal(backbone.norm.running_mean, statistics)
    with pytest.raises(DataError):
        embed_images(backbone, InputSpec(), [b"no image"])
    assert backbone.training
    assert not backbone.norm.training


def test_no_images_give_no_rows() -> None:
    assert embed_images(make_backbone(), InputSpec(), []).shape == (0, 6)


def test_the_first_undecodable_image_is_named() -> None:
    images = make_images(12)
    images[8] = images[5] = b"no image"
    with pytest.raises(DataError, match="faces number 5"):
        embed_images(make_backbone(), InputSpec(), images, batch_size=3, describe=lambda i: f"faces number {i}")


def test_an_error_of_the_network_is_raised_as_it_is() -> None:
    backbone = make_backbone()
    backbone.fc = nn.Linear(3, 6)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        embed_images(backbone, InputSpec(), make_images(2))


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        embed_images(make_backbone(), InputSpec(), make_images(1), batch_size=0)


def test_equal_images_are_verified_and_others_are_not() -> None:
    images = make_images(60)
    is_same = np.arange(30) % 2 == 0
    for pair in np.flatnonzero(is_same):
        images[2 * pair + 1] = images[2 * pair]
    result = evaluate_pairs(make_backbone(), InputSpec(), Pairs(images, is_same), batch_size=7)
    assert (result.accuracy, result.auc, result.num_pairs) == (1.0, 1.0, 30)
    assert result.mean_same_cosine == 1.0


def test_evaluation_names_the_set_in_its_errors() -> None:
    images = make_images(24)
    with pytest.raises(DataError, match=r"^my\.bin: 12 same and 0 different pairs"):
        evaluate_pairs(make_backbone(), InputSpec(), Pairs(images, np.ones(12, dtype=bool)), name="my.bin")
    images[7] = b""
    with pytest.raises(DataError, match=r"my\.bin, image 7 \(pair 3\)"):
        evaluate_pairs(make_backbone(), InputSpec(), Pairs(images, np.arange(12) % 2 == 0), name="my.bin")


def _embed_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    images = make_images(11)
    rows = embed_images(make_backbone(), InputSpec(), images, batch_size=2)
    pairs = Pairs(make_images(40), np.arange(20) % 2 == 0)
    result = evaluate_pairs(make_backbone(), InputSpec(), pairs, batch_size=3)
    few = embed_images(make_backbone(), InputSpec(), images[:1], batch_size=2)
    images[4] = images[3] = b"no image"  # batch 2 on rank 0, batch 1 on rank 1
    images[1] = b"no image"  # batch 0 on rank 0
    messages = [
        _message(make_backbone(), images),
        _message(make_backbone(), [images[0], images[0], *images[2:]]),
        _message(make_backbone(FailingBackbone), make_images(11)),
    ]
    torch.save({"rows": torch.from_numpy(rows), "few": torch.from_numpy(few), "messages": messages,
                "accuracies": result.fold_accuracies, "auc": result.auc}, f"{folder}/rank{rank}.pt")  # fmt: skip
    dist.destroy_process_group()
    end_process(0)


def _message(backbone: TinyBackbone, images: list[bytes]) -> str:
    try:
        embed_images(backbone, InputSpec(), images, batch_size=2)
    except (GkdError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_two_ranks_equal_one_and_fail_together(tmp_path: Path) -> None:
    mp.spawn(_embed_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    images = make_images(11)
    expected = embed_images(make_backbone(), InputSpec(), images, batch_size=2)
    result = evaluate_pairs(make_backbone(), InputSpec(), Pairs(make_images(40), np.arange(20) % 2 == 0), batch_size=3)
    for outcome in (first, second):
        np.testing.assert_array_equal(outcome["rows"].numpy(), expected)
        np.testing.assert_array_equal(outcome["few"].numpy(), embed_images(make_backbone(), InputSpec(), images[:1]))
        assert (outcome["accuracies"], outcome["auc"]) == (result.fold_accuracies, result.auc)
    assert first["messages"][:2] == second["messages"][:2]
    assert [text.split(":")[0] for text in first["messages"]] == ["DataError", "DataError", "GkdError"]
    assert "image 1" in first["messages"][0]
    assert "image 3" in first["messages"][1]
    assert first["messages"][2] == "GkdError: embedding failed on rank 1: RuntimeError: out of memory"
    assert second["messages"][2] == "RuntimeError: out of memory"
