"""Embedding encoded images: values, modes, failures, and two or three ranks equal to one, bit for bit."""

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
from gkd.evaluation.fusion import fuse
from gkd.inference.embed import embed_images, embed_views, evaluate_pairs, verify_views
from gkd.inference.views import VIEWS, fuse_views, needed_views
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


class NanBackbone(TinyBackbone):
    """Gives NaN for images whose first pixel is white, and infinity for those whose first pixel is black."""

    def forward(self, images: Tensor) -> Tensor:
        first = images[:, :, 0, 0].mean(dim=1, keepdim=True)
        return torch.where(first == 1, torch.nan, torch.where(first == -1, torch.inf, super().forward(images)))


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


def with_first_pixel(num_images: int, values: dict[int, int]) -> list[bytes]:
    images = make_images(num_images)
    for index, value in values.items():
        pixels = decode_image(images[index], SIZE, "test").copy()
        pixels[0, 0] = value
        images[index] = cv2.imencode(".png", pixels)[1].tobytes()
    return images


def test_unfit_embeddings_name_their_images() -> None:
    images = with_first_pixel(30, {3: 255, 4: 0, 21: 255})
    message = (
        r"^3 of 30 images have an embedding that is NaN or infinite: image 3; image 4; image 21; the network or its "
        r"input conversion is at fault$"
    )
    with pytest.raises(DataError, match=message):
        embed_images(make_backbone(NanBackbone), InputSpec(), images, batch_size=4, flip=False)
    pairs = Pairs(images, np.arange(15) % 2 == 0)
    with pytest.raises(DataError, match=r"my\.bin, image 3 \(pair 1\); my\.bin, image 4 \(pair 2\); my\.bin, image 21"):
        evaluate_pairs(make_backbone(NanBackbone), InputSpec(), pairs, name="my.bin")
    many = with_first_pixel(12, dict.fromkeys(range(12), 255))
    with pytest.raises(DataError, match=r"^12 of 12 images .* image 7; …; the network"):
        embed_images(make_backbone(NanBackbone), InputSpec(), many)


def test_a_mirror_image_alone_can_be_unfit() -> None:
    mirrored = cv2.imencode(".png", decode_image(with_first_pixel(1, {0: 255})[0], SIZE, "test")[:, ::-1])[1].tobytes()
    assert np.isfinite(embed_images(make_backbone(NanBackbone), InputSpec(), [mirrored], flip=False)).all()
    with pytest.raises(DataError, match="1 of 1 images have an embedding that is NaN or infinite: image 0;"):
        embed_images(make_backbone(NanBackbone), InputSpec(), [mirrored])


def test_the_network_sees_batches_of_one_size_only() -> None:
    backbone, sizes = make_backbone(), []
    backbone.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    rows = embed_images(backbone, InputSpec(), make_images(7), batch_size=3)
    assert sizes == [3] * 6
    assert rows.shape == (7, 6)


def test_what_follows_an_image_does_not_change_its_embedding() -> None:
    backbone, images = make_backbone(), make_images(13)
    whole = embed_images(backbone, InputSpec(), images, batch_size=5)
    for num_images in (1, 4, 6, 12):
        rows = embed_images(backbone, InputSpec(), images[:num_images], batch_size=5)
        np.testing.assert_array_equal(rows, whole[:num_images])


@pytest.mark.parametrize("flip", ["sum", "none", "unit_sum", "norm_weighted"])
def test_every_fusion_by_name(flip: str) -> None:
    backbone, images = make_backbone(), make_images(7)
    views = embed_views(backbone, InputSpec(), images, batch_size=3)
    expected = fuse(views["image"], views["mirror"], flip).astype(np.float32)
    rows = embed_images(backbone, InputSpec(), images, batch_size=3, flip=flip)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, expected)
    if flip in ("sum", "none"):
        np.testing.assert_array_equal(
            embed_images(backbone, InputSpec(), images, batch_size=3, flip=flip == "sum"), expected
        )


def test_a_view_is_the_same_alone_and_beside_the_other() -> None:
    backbone, images = make_backbone(), make_images(7)
    both = embed_views(backbone, InputSpec(), images, batch_size=3)
    assert tuple(both) == VIEWS
    for view in VIEWS:
        alone = embed_views(backbone, InputSpec(), images, batch_size=3, views=(view,))
        assert tuple(alone) == (view,)
        np.testing.assert_array_equal(alone[view], both[view])
    flipped = [
        cv2.imencode(".png", cv2.imdecode(np.frombuffer(each, np.uint8), 1)[:, ::-1])[1].tobytes() for each in images
    ]
    np.testing.assert_array_equal(
        embed_images(backbone, InputSpec(), flipped, batch_size=3, flip=False), both["mirror"]
    )


def test_fusing_works_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    views = {view: generator.normal(size=(11, 6)).astype(np.float32) for view in VIEWS}
    whole = {flip: fuse_views(views, flip) for flip in ("sum", "norm_weighted")}
    monkeypatch.setattr("gkd.inference.views._FUSED_ROWS", 4)
    for flip, expected in whole.items():
        np.testing.assert_array_equal(fuse_views(views, flip), expected)
    views["mirror"][9] = 0
    with pytest.raises(DataError, match=r"^1 of 11 images have an embedding of zero, which has no direction: face 9;"):
        fuse_views(views, "norm_weighted", "face {}".format)
    np.testing.assert_array_equal(fuse_views(views, "sum")[9], views["image"][9])


def test_evaluation_is_that_of_the_fused_views() -> None:
    backbone, pairs = make_backbone(), Pairs(make_images(40), np.arange(20) % 2 == 0)
    views = embed_views(backbone, InputSpec(), pairs.images, batch_size=6)
    for flip in (True, "none", "unit_sum"):
        result = evaluate_pairs(backbone, InputSpec(), pairs, batch_size=6, flip=flip)
        np.testing.assert_array_equal(result.distances, verify_views(views, pairs.is_same, flip=flip).distances)


def test_unknown_choices_are_refused() -> None:
    backbone, images = make_backbone(), make_images(1)
    with pytest.raises(
        ConfigError, match="unknown flip fusion `mean`; choose one of sum, none, unit_sum, norm_weighted"
    ):
        embed_images(backbone, InputSpec(), images, flip="mean")
    with pytest.raises(ConfigError, match="precision must be fp32 or bf16, got `fp16`"):
        embed_images(backbone, InputSpec(), images, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="views must be some of image, mirror, got none"):
        embed_views(backbone, InputSpec(), images, views=())
    assert needed_views(False) == needed_views("none") == ("image",)


def test_half_precision_is_close() -> None:
    backbone, images = make_backbone(), make_images(5)
    exact = embed_images(backbone, InputSpec(), images)
    rounded = embed_images(backbone, InputSpec(), images, precision="bf16")
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.05 * np.abs(exact).max()


def _embed_on_rank(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    images = make_images(11)
    views = embed_views(make_backbone(), InputSpec(), images, batch_size=2)
    uneven = embed_images(make_backbone(), InputSpec(), images[:7], batch_size=3)
    pairs = Pairs(make_images(40), np.arange(20) % 2 == 0)
    result = evaluate_pairs(make_backbone(), InputSpec(), pairs, batch_size=3)
    few = embed_images(make_backbone(), InputSpec(), images[:1], batch_size=2)
    none = embed_images(make_backbone(), InputSpec(), [], batch_size=2)
    images[4] = images[3] = b"no image"  # batch 2 on rank 0 of two, batch 1 on rank 1
    images[1] = b"no image"  # batch 0 on rank 0
    messages = [
        _message(make_backbone(), images),
        _message(make_backbone(), [images[0], images[0], *images[2:]]),
        _message(make_backbone(FailingBackbone), make_images(11)),
        _message(make_backbone(NanBackbone), with_first_pixel(11, {3: 0, 10: 255})),
    ]
    rows = {"uneven": uneven, "few": few, "none": none, **views}
    torch.save({"messages": messages, "accuracies": result.fold_accuracies, "auc": result.auc,
                **{key: torch.from_numpy(each) for key, each in rows.items()}}, f"{folder}/rank{rank}.pt")  # fmt: skip
    dist.destroy_process_group()
    end_process(0)


def _message(backbone: TinyBackbone, images: list[bytes]) -> str:
    try:
        embed_images(backbone, InputSpec(), images, batch_size=2)
    except (GkdError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_equal_one_process_and_fail_together(tmp_path: Path, world_size: int) -> None:
    mp.spawn(_embed_on_rank, args=(str(tmp_path), world_size), nprocs=world_size, join=True)
    outcomes = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(world_size)]
    images = make_images(11)
    views = embed_views(make_backbone(), InputSpec(), images, batch_size=2)
    uneven = embed_images(make_backbone(), InputSpec(), images[:7], batch_size=3)
    few = embed_images(make_backbone(), InputSpec(), images[:1], batch_size=2)
    result = evaluate_pairs(make_backbone(), InputSpec(), Pairs(make_images(40), np.arange(20) % 2 == 0), batch_size=3)
    for outcome in outcomes:
        for view in VIEWS:
            np.testing.assert_array_equal(outcome[view].numpy(), views[view])
        np.testing.assert_array_equal(outcome["uneven"].numpy(), uneven)
        np.testing.assert_array_equal(outcome["few"].numpy(), few)
        assert outcome["none"].shape == (0, 6)
        assert (outcome["accuracies"], outcome["auc"]) == (result.fold_accuracies, result.auc)
    texts = outcomes[0]["messages"]
    assert [text.split(":")[0] for text in texts] == ["DataError", "DataError", "GkdError", "DataError"]
    assert "image 1" in texts[0]
    assert "image 3" in texts[1]
    assert texts[2] == "GkdError: embedding failed on rank 1: RuntimeError: out of memory"
    assert "2 of 11 images have an embedding that is NaN or infinite: image 3; image 10;" in texts[3]
    for rank, outcome in enumerate(outcomes[1:], start=1):
        others = list(texts)
        if rank == 1:
            others[2] = "RuntimeError: out of memory"
        assert outcome["messages"] == others
