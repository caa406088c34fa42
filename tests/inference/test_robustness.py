"""Robustness curves: figures against degraded files evaluated one by one, ranks, refusals, the plot, and real faces."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from gkd.data import PairSet, decode_image
from gkd.data.degrade import DEGRADATIONS
from gkd.evaluation import VerificationResult
from gkd.evaluation.folds import fold_sizes
from gkd.evaluation.robustness_plot import plot_robustness
from gkd.inference.embed import evaluate_pairs
from gkd.inference.robustness import choose_pairs, measure_robustness
from gkd.models import InputSpec, create_backbone

SIZE = (20, 16)
LEVELS: dict[str, tuple[float, ...]] = {
    "blur": (1.0, 3.0),
    "low_resolution": (8, 4),
    "noise": (20,),
    "square": (0.3,),
    "rotation": (10,),
}


class TinyBackbone(nn.Module):
    """A few weights, and an embedding that mirroring changes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding_dim = 6
        self.input_size = SIZE
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4 * 9 * 7, 6)
        self.batch_sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batch_sizes.append(len(images))
        result: Tensor = self.fc(self.conv(images).flatten(1))
        return result


class FailingBackbone(TinyBackbone):
    """Raises on rank 1 only."""

    def forward(self, images: Tensor) -> Tensor:
        if dist.is_initialized() and dist.get_rank() == 1:
            raise RuntimeError("out of memory")
        return super().forward(images)


class DarkBackbone(TinyBackbone):
    """Zero or NaN where an image's mean is low."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        is_dark = images.mean(dim=(1, 2, 3)) < -0.5
        return torch.where(is_dark[:, None], self.value, super().forward(images))


def make_backbone(kind: Any = TinyBackbone, *arguments: Any) -> TinyBackbone:
    torch.manual_seed(0)
    backbone: TinyBackbone = kind(*arguments)
    return backbone


def make_pairs(num_pairs: int = 25) -> PairSet:
    """Same pairs differ by a little noise, different pairs in everything; both in every fold."""
    generator = np.random.default_rng(0)
    images = []
    is_same = np.arange(num_pairs) % 2 == 0
    for same in is_same:
        left, right = (cv2.resize(generator.integers(0, 256, (5, 4, 3), dtype=np.uint8), (16, 20)) for _ in range(2))
        if same:
            right = np.clip(left + generator.normal(0, 25, left.shape), 0, 255).astype(np.uint8)
        images += [cv2.imencode(".png", each)[1].tobytes() for each in (left, right)]
    return PairSet(images, is_same)


def degraded_files(pairs: PairSet, name: str, level: float, seed: int, is_degraded: Sequence[int]) -> PairSet:
    """The set with each image degraded alone and written to a file that loses nothing."""
    images = []
    for number, encoded in enumerate(pairs.images):
        pixels = torch.from_numpy(decode_image(encoded, SIZE, "test").copy()).permute(2, 0, 1)[None]
        if number % 2 in is_degraded:
            pixels = DEGRADATIONS[name](pixels, level, np.array([number]), seed)
        row = pixels[0].permute(1, 2, 0).numpy()[..., ::-1]
        images.append(cv2.imencode(".png", np.ascontiguousarray(row))[1].tobytes())
    return PairSet(images, pairs.is_same)


def measure(backbone: nn.Module, pairs: Any, **settings: Any) -> Any:
    settings = {"degradations": tuple(LEVELS), "levels": LEVELS, "batch_size": 4, **settings}
    return measure_robustness(backbone, InputSpec(), pairs, **settings)


def assert_equal(left: VerificationResult, right: VerificationResult) -> None:
    np.testing.assert_array_equal(left.distances, right.distances)
    assert left.to_json() == right.to_json()


@pytest.mark.parametrize("flip", [True, False, "unit_sum"])
@pytest.mark.parametrize("batch_size", [4, 7, 64])
def test_figures_are_those_of_degraded_files(flip: bool | str, batch_size: int) -> None:
    pairs = make_pairs()
    result = measure(make_backbone(), pairs, flip=flip, batch_size=batch_size, seed=3)
    clean = evaluate_pairs(make_backbone(), InputSpec(), pairs, flip=flip, batch_size=batch_size)
    assert_equal(result.clean, clean)
    assert list(result.curves) == list(LEVELS)
    for name, points in result.curves.items():
        assert [level for level, _ in points] == list(LEVELS[name])
        for level, found in points:
            files = degraded_files(pairs, name, level, 3, (0, 1))
            assert_equal(found, evaluate_pairs(make_backbone(), InputSpec(), files, flip=flip, batch_size=batch_size))
            assert not np.array_equal(found.distances, clean.distances)


def test_the_right_side_alone() -> None:
    pairs = make_pairs()
    result = measure(make_backbone(), pairs, sides="right")
    assert_equal(result.clean, evaluate_pairs(make_backbone(), InputSpec(), pairs, batch_size=4))
    for name, points in result.curves.items():
        for level, found in points:
            expected = evaluate_pairs(make_backbone(), InputSpec(), degraded_files(pairs, name, level, 0, (1,)))
            np.testing.assert_allclose(found.distances, expected.distances, rtol=1e-3, atol=1e-9)


def test_a_level_without_effect_gives_the_clean_figures() -> None:
    result = measure(make_backbone(), make_pairs(), degradations=("blur",), levels={"blur": (0, 2)})
    assert_equal(result.curves["blur"][0][1], result.clean)


@pytest.mark.parametrize(("sides", "per_level"), [("both", 2), ("right", 1)])
def test_forward_passes_are_counted_and_of_one_size(sides: Any, per_level: int) -> None:
    backbone = make_backbone()
    result = measure(backbone, make_pairs(24), sides=sides, batch_size=4)  # 6 steps of 8 images
    num_levels = sum(len(levels) for levels in LEVELS.values())
    assert result.num_forward_passes == len(backbone.batch_sizes) == 2 * 6 * (2 + num_levels * per_level)
    assert set(backbone.batch_sizes) == {4}


def test_every_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counting(encoded: bytes, size: tuple[int, int], where: str) -> Any:
        decoded.append(where)
        return decode_image(encoded, size, where)

    monkeypatch.setattr("gkd.inference.decoding.decode_image", counting)
    measure(make_backbone(), make_pairs())
    assert sorted(decoded) == sorted(f"pair set, image {index} (pair {index // 2})" for index in range(50))


def test_chosen_pairs_are_spread_within_folds() -> None:
    is_same = np.tile(np.repeat([True, False], 30), 10)  # as LFW: 300 and 300 in a fold
    chosen = choose_pairs(is_same, 100)
    assert len(np.unique(chosen)) == 100
    for fold in range(10):
        own = chosen[10 * fold : 10 * fold + 10]
        assert own.tolist() == [60 * fold + place for place in (0, 6, 12, 18, 24, 30, 36, 42, 48, 54)]
    np.testing.assert_array_equal(choose_pairs(is_same, None), np.arange(600))
    np.testing.assert_array_equal(choose_pairs(is_same, 600), np.arange(600))
    np.testing.assert_array_equal(choose_pairs(is_same, 10**6), np.arange(600))


@pytest.mark.parametrize("num_pairs", [23, 60, 107])
def test_chosen_pairs_keep_folds_and_shares(num_pairs: int) -> None:
    is_same = np.random.default_rng(num_pairs).random(num_pairs) < 0.3
    folds = np.repeat(np.arange(10), fold_sizes(num_pairs, 10))
    for max_pairs in range(10, num_pairs + 1):
        chosen = choose_pairs(is_same, max_pairs)
        assert (np.diff(chosen) > 0).all()
        np.testing.assert_array_equal(folds[chosen], np.repeat(np.arange(10), fold_sizes(max_pairs, 10)))
        for fold in range(10):
            own, all_of_fold = is_same[chosen[folds[chosen] == fold]], is_same[folds == fold]
            assert abs(own.sum() - all_of_fold.mean() * len(own)) <= 0.5


def test_fewer_pairs_are_those_pairs_of_the_whole() -> None:
    pairs = make_pairs(40)
    whole = measure(make_backbone(), pairs)
    part = measure(make_backbone(), pairs, max_pairs=22)
    chosen = choose_pairs(pairs.is_same, 22)
    for name, points in part.curves.items():
        for (_, found), (_, of_all) in zip(points, whole.curves[name], strict=True):
            np.testing.assert_allclose(found.distances, of_all.distances[chosen], rtol=1e-3, atol=1e-9)
    assert part.clean.num_pairs == 22


def test_json_and_table() -> None:
    result = measure(make_backbone(), make_pairs(), sides="right", seed=2)
    told = json.loads(json.dumps(result.to_json()))
    assert (told["num_pairs"], told["sides"], told["seed"]) == (25, "right", 2)
    assert told["num_forward_passes"] == result.num_forward_passes
    blur = told["curves"]["blur"]
    assert blur["unit"] == "sigma in pixels"
    assert [point["level"] for point in blur["points"]] == [None, 1.0, 3.0]
    assert blur["points"][0]["accuracy"] == result.clean.accuracy
    at_three = result.curves["blur"][1][1]
    assert blur["points"][2] == {
        "level": 3.0, "accuracy": at_three.accuracy, "accuracy_std": at_three.accuracy_std,
        "tar_at_far_1e-3": None, "auc": at_three.auc,
    }  # fmt: skip
    lines = result.table().splitlines()
    assert lines[0].split() == ["degradation", "level", "accuracy", "TAR@1e-3", "AUC"]
    assert lines[2].split()[0] == "none"
    assert lines[4].split()[:3] == ["blur", "3", f"{100 * at_three.accuracy:.2f}"]
    assert len(lines) == 3 + sum(len(levels) for levels in LEVELS.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"degradations": ("fog",), "levels": {}}, "degradations must be different ones of blur, .*, got fog"),
        ({"levels": {"fog": (1,)}}, "levels are given for fog, which is not among the degradations to measure"),
        ({"degradations": ("blur",)}, "levels are given for low_resolution, noise"),
        ({"degradations": ("blur",), "levels": {"blur": ()}}, r"blur: levels must be one or more different ones, got"),
        ({"degradations": ("blur",), "levels": {"blur": (2, 2)}}, r"one or more different ones, got \[2, 2\]"),
        ({"degradations": ("blur",), "levels": {"blur": (2, -1)}}, "from 0 to 16, got -1"),
        ({"degradations": ("low_resolution",), "levels": {}}, "of at most the image's, which is 16, got 56"),
        ({"sides": "left"}, "sides must be both or right, got `left`"),
        ({"max_pairs": 9}, "max_pairs must be at least the number of folds, 10, got 9"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must lie between 0 and"),
        ({"flip": "mean"}, "unknown flip fusion `mean`"),
    ],
)
def test_settings_that_do_not_exist_are_refused_before_any_work(settings: dict[str, Any], message: str) -> None:
    backbone = make_backbone()
    with pytest.raises(ConfigError, match=message):
        measure(backbone, make_pairs(), **settings)
    assert not backbone.batch_sizes


def test_data_that_cannot_be_judged_are_told() -> None:
    pairs = make_pairs()
    with pytest.raises(DataError, match=r"my\.bin: 12 pairs \(12 same, 0 different\)|my\.bin: 12 same and 0 different"):
        measure(make_backbone(), PairSet(pairs.images[:24], [True] * 12), name="my.bin")
    pairs.images[17] = pairs.images[41] = b"no image"
    with pytest.raises(DataError, match=r"my\.bin, image 17 \(pair 8\)"):
        measure(make_backbone(), pairs, name="my.bin")


@pytest.mark.parametrize(("value", "what"), [(0.0, "zero"), (float("nan"), "NaN")])
def test_unfit_embeddings_name_image_and_level(value: float, what: str) -> None:
    settings = {"degradations": ("darkness",), "levels": {"darkness": (0.9, 0.1)}}
    with pytest.raises(
        DataError, match=rf"s\.bin, image 0 \(pair 0\), darkness 0\.1.*|{what}.*darkness 0\.1"
    ) as caught:
        measure(make_backbone(DarkBackbone, value), make_pairs(), name="s.bin", **settings)
    assert what in str(caught.value)


def _measure_on_rank(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = {sides: measure(make_backbone(), make_pairs(), sides=sides) for sides in ("both", "right")}
    told = {sides: json.dumps(result.to_json()) for sides, result in results.items()}
    distances = {
        sides: torch.from_numpy(np.stack([found.distances for points in result.curves.values() for _, found in points]))
        for sides, result in results.items()
    }
    broken = make_pairs()
    broken.images[9] = broken.images[2] = b"no image"
    messages = [_message(make_backbone(), broken), _message(make_backbone(FailingBackbone), make_pairs())]
    torch.save({"told": told, "distances": distances, "messages": messages}, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def _message(backbone: nn.Module, pairs: PairSet) -> str:
    try:
        measure(backbone, pairs)
    except (GkdError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def test_ranks_equal_one_process_and_fail_together(tmp_path: Path) -> None:
    mp.spawn(_measure_on_rank, args=(str(tmp_path), 2), nprocs=2, join=True)
    outcomes = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    for sides in ("both", "right"):
        alone = measure(make_backbone(), make_pairs(), sides=sides)
        expected = np.stack([found.distances for points in alone.curves.values() for _, found in points])
        for outcome in outcomes:
            np.testing.assert_array_equal(outcome["distances"][sides].numpy(), expected)
            assert json.loads(outcome["told"][sides]) == json.loads(json.dumps(alone.to_json()))
    for outcome in outcomes:
        assert outcome["messages"][0].startswith("DataError")
        assert "image 2 (pair 1)" in outcome["messages"][0]
    assert outcomes[0]["messages"][1] == "GkdError: embedding failed on rank 1: RuntimeError: out of memory"
    assert outcomes[1]["messages"][1] == "RuntimeError: out of memory"


def told_of(names: Sequence[str], drop: float = 0.1) -> dict[str, Any]:
    """What `to_json` gives, of accuracies that fall."""
    return {
        "curves": {
            name: {
                "unit": DEGRADATIONS[name].unit,
                "points": [
                    {"level": level, "accuracy": 1 - drop * place, "accuracy_std": 0.01, "auc": 1 - drop * place,
                     "tar_at_far_1e-3": None if place == 2 else 1 - drop * place}
                    for place, level in enumerate((None, *DEGRADATIONS[name].levels))
                ],
            }
            for name in names
        }
    }  # fmt: skip


def test_plot_has_a_panel_a_degradation_and_a_line_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    saved: list[Figure] = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *rest, **more: (saved.append(self), write(self, *rest, **more)))
    results = {"teacher": told_of(tuple(DEGRADATIONS), 0.05), "student": told_of(("blur", "jpeg"))}
    for figure in ("accuracy", "tar_at_far_1e-3", "auc"):
        plot_robustness(results, tmp_path / "made" / f"{figure}.png", figure, title="LFW")
        image = cv2.imread(str(tmp_path / "made" / f"{figure}.png"))
        assert image is not None
        assert (image != 255).any(axis=2).mean() > 0.02
    plot_robustness(results, tmp_path / "curves.pdf")
    assert (tmp_path / "curves.pdf").read_bytes().startswith(b"%PDF")
    panels = [axes for axes in saved[0].axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == [name.replace("_", " ") for name in DEGRADATIONS]
    blur, mask = panels[0], panels[list(DEGRADATIONS).index("mask")]
    lines = {container.get_label(): container.lines[0].get_ydata(orig=False) for container in blur.containers}
    np.testing.assert_allclose(lines["teacher"], [100, 95, 90, 85, 80])
    np.testing.assert_allclose(lines["student"], [100, 90, 80, 70, 60])
    assert [label.get_text() for label in blur.get_xticklabels()] == ["none", "0.5", "1", "2", "3"]
    assert [len(container.lines[0].get_ydata(orig=False)) for container in mask.containers] == [5, 0]
    assert [len(each.lines[0].get_ydata(orig=False)) for each in saved[1].axes[0].containers] == [4, 4], (
        "None is left out"
    )


def test_plot_says_what_it_cannot_draw(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png or \.pdf, got .*x\.svg"):
        plot_robustness({"a": told_of(("blur",))}, tmp_path / "x.svg")
    with pytest.raises(ConfigError, match="figure must be one of accuracy, tar_at_far_1e-3, auc, got `eer`"):
        plot_robustness({"a": told_of(("blur",))}, tmp_path / "x.png", "eer")
    with pytest.raises(ConfigError, match="no degradation to draw"):
        plot_robustness({}, tmp_path / "x.png")


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretrained_network_loses_accuracy_on_degraded_real_faces(real_data: Path) -> None:
    backbone = create_backbone(f"onnx:{real_data / 'models' / 'mobilefacenet128.onnx'}")
    pairs = PairSet.load(real_data / "lfw" / "lfw.bin")
    imagenet = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    levels = {"blur": (2.0, 5.0), "low_resolution": (28, 10)}
    result = measure_robustness(
        backbone, imagenet, pairs, degradations=tuple(levels), levels=levels, max_pairs=600, flip=False
    )
    assert result.clean.accuracy > 0.98
    for points in result.curves.values():
        aucs = [result.clean.auc, *(found.auc for _, found in points)]
        assert aucs == sorted(aucs, reverse=True)
        assert points[-1][1].accuracy < result.clean.accuracy - 0.05
