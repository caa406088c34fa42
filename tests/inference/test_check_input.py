"""The declared input of a foreign network against others: on a network that is right with one input only."""

from __future__ import annotations

import json
import logging
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
from gkd.core.errors import CheckpointError, ConfigError, DataError
from gkd.data import PairSet
from gkd.evaluation import squared_distances, verify_distances
from gkd.evaluation.paired import paired_d_prime_gap
from gkd.inference import check_input as module
from gkd.inference import input_cosines
from gkd.inference.check_input import InputCheck, alternatives, check_input, check_input_once
from gkd.inference.embed import embed_images
from gkd.inference.input_check import from_plain, to_plain
from gkd.models import InputSpec, create_backbone

SIDE = 16
IMAGENET = InputSpec(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
BGR_IMAGENET = InputSpec(color="bgr", mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395))


class PlusMinusOneBackbone(nn.Module):
    """Sees its first channel only, best where pixels lie in -1..1: beyond, larger values answer less again."""

    input_size = (SIDE, SIDE)
    embedding_dim = SIDE * SIDE

    def forward(self, images: Tensor) -> Tensor:
        values = 0.7 * images[:, 0].flatten(1)
        return values * torch.exp(-values * values)


def make_pairs(num_pairs: int = 160, is_same: np.ndarray | None = None) -> PairSet:
    """Images whose red channel shows who it is, and whose other channels are noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(num_pairs) % 2 == 0 if is_same is None else is_same
    images = []
    for label in labels:
        faces = generator.integers(30, 226, (2, SIDE, SIDE))
        for face in (faces[0], faces[0 if label else 1]):
            pixels = generator.integers(0, 256, (SIDE, SIDE, 3))
            pixels[..., 2] = np.clip(face + generator.normal(0, 40, (SIDE, SIDE)), 0, 255)
            images.append(cv2.imencode(".png", pixels.astype(np.uint8))[1].tobytes())
    return PairSet(images, labels, "drawn")


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def test_the_right_input_passes_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    pairs = make_pairs()
    check = check_input(PlusMinusOneBackbone(), InputSpec(), pairs, batch_size=7)
    embeddings = embed_images(PlusMinusOneBackbone(), InputSpec(), pairs.images, flip=False)
    expected = verify_distances(squared_distances(embeddings[0::2], embeddings[1::2]), pairs.is_same)
    assert check.d_prime == pytest.approx(expected.d_prime, rel=1e-5)
    assert check.best_d_prime is not None
    assert check.best_d_prime < 0.8 * check.d_prime
    assert check.gap_high is not None
    assert check.gap_high < 0
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    begin, line = caplog.messages
    assert begin == "input: comparing 8 conversions on 160 pairs of drawn"
    assert line.startswith(f"input: rgb, mean 127.5, std 127.5, 16x16; d' {check.d_prime:.2f} on 160 pairs; best")
    assert line.endswith(f"alternative rgb, mean 0, std 255: {check.best_d_prime:.2f}")
    # Seven of eight: the network sees nothing in pixels of 0..255, in either order, and gives no d'.
    expected = f"best of 7 inputs on 160 pairs, d' {check.d_prime:.2f}; next rgb, mean 0, std 255: "
    assert check.outcome == f"{expected}{check.best_d_prime:.2f}"


def test_the_interval_allows_for_the_best_of_several() -> None:
    """95 % shared by the alternatives that could be measured: six, since the network sees nothing in 0..255."""
    pairs = make_pairs()
    check = check_input(PlusMinusOneBackbone(), InputSpec(), pairs, seed=5)
    cosines = []
    for spec in (InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3), InputSpec()):
        rows = embed_images(PlusMinusOneBackbone(), spec, pairs.images, flip=False)
        cosines.append(1 - squared_distances(rows[0::2], rows[1::2]) / 2)
    settings = {"num_resamples": 10_000, "seed": 5, "confidence": 1 - 0.05 / 6}
    _, low, high = paired_d_prime_gap(*cosines, pairs.is_same, **settings)
    assert (check.gap_low, check.gap_high) == pytest.approx((low, high), rel=1e-4)


@pytest.mark.parametrize("declared", [InputSpec(color="bgr"), IMAGENET, InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3)])
def test_a_wrong_input_is_refused_with_the_right_one_to_type(declared: InputSpec) -> None:
    with pytest.raises(ConfigError) as caught:
        check_input(PlusMinusOneBackbone(), declared, make_pairs())
    message = str(caught.value)
    assert message.startswith(f"the declared input ({declared}) is not what this network was trained")
    assert "--color rgb --mean 127.5 --std 127.5 on the command line" in message
    assert "teacher.input: {color: rgb, mean: [127.5, 127.5, 127.5], std: [127.5, 127.5, 127.5]}" in message
    assert " on 160 pairs (gap " in message


def test_numbers_of_three_channels_are_written_out() -> None:
    check = InputCheck(InputSpec(), (112, 112), 600, 5.26, IMAGENET, 5.50, 0.07, 0.43)
    with pytest.raises(ConfigError, match=r"--mean 123\.675 116\.28 103\.53 --std 58\.395 57\.12 57\.375 on the"):
        module._judge(check)


@pytest.mark.parametrize(
    ("figure", "low", "levels"),
    [(5.2, -0.1, []), (5.4, -0.1, ["WARNING"]), (5.3001, 0.00005, ["WARNING"]), (5.3, 0.0, [])],
)
def test_a_doubtful_gap_is_a_warning(
    figure: float, low: float, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    module._judge(InputCheck(InputSpec(), (112, 112), 600, 5.3, IMAGENET, figure, low, 0.4))
    assert [record.levelname for record in caplog.records] == levels
    if levels:
        assert f"d' is {figure:.2f} with rgb, mean 123.675 116.28 103.53, std" in caplog.text
        assert "5.30 with the declared rgb, mean 127.5" in caplog.text


def test_a_network_blind_to_the_input_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Blind(PlusMinusOneBackbone):
        """Normalises its input itself and adds the channels: no conversion of one scale for all matters."""

        def forward(self, images: Tensor) -> Tensor:
            values = images.sum(1).flatten(1)
            return (values - values.mean(1, keepdim=True)) / values.std(1, keepdim=True)

    check = check_input(Blind(), InputSpec(), make_pairs())
    assert check.best_d_prime == pytest.approx(check.d_prime, rel=0.01)
    assert "not what this network" not in caplog.text


def test_alternatives_are_both_orders_without_near_copies() -> None:
    found = alternatives(InputSpec(mean=(127.5,) * 3, std=(128.0,) * 3))
    assert len(found) == 7
    assert IMAGENET in found
    assert BGR_IMAGENET in found
    # Instead of 127.5, which is the same for all purposes, its numbers in the other order.
    assert InputSpec(color="bgr", mean=(127.5,) * 3, std=(128.0,) * 3) in found
    assert not any(spec.std == (127.5,) * 3 for spec in found)
    own = InputSpec(mean=(10.0, 20.0, 30.0), std=(40.0, 50.0, 60.0))
    assert InputSpec(color="bgr", mean=(30.0, 20.0, 10.0), std=(60.0, 50.0, 40.0)) in alternatives(own)
    assert len(alternatives(own)) == 9


def test_the_swapped_numbers_of_another_order_are_an_alternative() -> None:
    """Declared BGR with numbers in the order of RGB: both orders with the right numbers are tried."""
    declared = replace(IMAGENET, color="bgr")
    assert {IMAGENET, BGR_IMAGENET} <= set(alternatives(declared))


def test_the_first_pairs_are_taken_or_an_even_selection() -> None:
    mixed, sorted_labels = np.arange(100) % 2 == 0, np.arange(100) < 50
    assert module._choose(mixed, 30).tolist() == list(range(30))
    assert module._choose(mixed, 300).tolist() == list(range(100))
    chosen = module._choose(sorted_labels, 30)
    assert len(chosen) == 30
    assert sorted_labels[chosen].mean() == pytest.approx(0.5, abs=0.05)
    assert module._choose(np.arange(100) % 5 == 0, 40).tolist() == list(range(40))
    assert module._choose(np.arange(100) % 6 == 0, 40).tolist() != list(range(40))
    with pytest.raises(ConfigError, match="num_pairs must be at least 1, got 0"):
        module._choose(mixed, 0)


def test_pairs_in_order_of_class_are_checked_too() -> None:
    pairs = make_pairs(300, np.arange(300) < 150)
    check = check_input(PlusMinusOneBackbone(), InputSpec(), pairs, num_pairs=120)
    assert check.num_pairs == 120
    assert check.d_prime is not None


def test_too_few_pairs_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    check = check_input(PlusMinusOneBackbone(), InputSpec(color="bgr"), make_pairs(98))
    reason = "drawn has 49 same and 49 different pairs to look at, and 50 of each are needed"
    assert check == InputCheck(InputSpec(color="bgr"), (SIDE, SIDE), 98, reason=reason)
    assert str(check) == f"input: bgr, mean 127.5, std 127.5, 16x16; not checked: {reason}"
    assert check.outcome == f"not checked: {reason}"
    assert "cannot be checked: drawn has 49 same and 49 different pairs to look at, and 50 of each" in caplog.text


@pytest.mark.parametrize("usual", [InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3), InputSpec(std=(128.0,) * 3)])
def test_inputs_of_known_families_are_among_the_alternatives(usual: InputSpec) -> None:
    """0..1 is one of the usual ones; a division by 128 differs from 127.5 by nothing that shows."""
    others = [InputSpec(color="bgr"), *alternatives(InputSpec(color="bgr"))]
    assert any(module._is_near(usual, other) for other in others)


class Counting(PlusMinusOneBackbone):
    """Counts the images it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, images: Tensor) -> Tensor:
        self.num_images += len(images)
        return super().forward(images)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_only_the_likeliest_inputs_see_all_pairs(monkeypatch: pytest.MonkeyPatch, is_sorted: bool) -> None:
    """The same outcome as of all on all pairs, for fewer images."""
    pairs = make_pairs(420, np.arange(420) < 210 if is_sorted else None)
    backbone = Counting()
    check = check_input(backbone, InputSpec(), pairs)
    num_first = 2 * len(range(0, 210, 4))
    assert backbone.num_images == 2 * (8 * num_first + 4 * (420 - num_first))
    monkeypatch.setattr(input_cosines, "_MIN_STEP", 1000)
    whole = check_input(Counting(), InputSpec(), pairs)
    # One more is told to be an alternative: the image that nothing is seen of is not among the first.
    assert (check.num_alternatives, whole.num_alternatives) == (7, 6)
    assert check.best_alternative == whole.best_alternative
    assert (check.d_prime, check.best_d_prime) == pytest.approx((whole.d_prime, whole.best_d_prime))
    # The interval allows for all that were tried, not only for those that saw all pairs.
    assert (check.gap_low, check.gap_high) == pytest.approx((whole.gap_low, whole.gap_high), rel=0.02)
    assert check.gap_low < whole.gap_low < whole.gap_high < check.gap_high


def test_screening_takes_pairs_of_both_classes_evenly() -> None:
    chosen = input_cosines._screening_pairs(np.arange(600) % 2 == 0)
    assert chosen.sum() == 100
    assert chosen[np.arange(600) % 2 == 0].sum() == 50
    assert np.flatnonzero(chosen)[-1] > 580
    assert input_cosines._screening_pairs(np.arange(299) < 150).all()


def test_an_alternative_that_fails_late_is_left_out() -> None:
    class Tiring(Counting):
        """Refuses pixels of 0..1 once it has seen the screening pairs."""

        def forward(self, images: Tensor) -> Tensor:
            if self.num_images > 1500 and images.min() >= 0:
                raise CheckpointError("no more of these")
            return super().forward(images)

    check = check_input(Tiring(), InputSpec(), make_pairs(420))
    assert check.best_alternative is not None
    assert check.best_alternative.mean != (0.0, 0.0, 0.0)


def test_an_alternative_that_fails_is_left_out_and_the_declared_is_not() -> None:
    class Fussy(PlusMinusOneBackbone):
        def forward(self, images: Tensor) -> Tensor:
            if images.abs().max() > 1.01:
                raise CheckpointError("too bright")
            return super().forward(images)

    check = check_input(Fussy(), InputSpec(), make_pairs())
    assert check.best_alternative == InputSpec(mean=(0.0,) * 3, std=(255.0,) * 3)
    with pytest.raises(CheckpointError, match="too bright"):
        check_input(Fussy(), IMAGENET, make_pairs())


def test_unfit_images_and_sizes_are_refused() -> None:
    pairs = make_pairs()
    pairs.images[5] = b"\xff\xd8\xff\xe0 no image"
    with pytest.raises(DataError, match="drawn: pair 2, right image"):
        check_input(PlusMinusOneBackbone(), InputSpec(), pairs)
    with pytest.raises(ConfigError, match="batch_size must be at least 1, got 0"):
        check_input(PlusMinusOneBackbone(), InputSpec(), make_pairs(), batch_size=0)


def test_the_mode_of_the_network_is_kept() -> None:
    backbone = PlusMinusOneBackbone().train()
    check_input(backbone, InputSpec(), make_pairs(110))
    assert backbone.training


def _check_on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    check = check_input(PlusMinusOneBackbone(), InputSpec(), make_pairs(120))
    record, backbone = Path(folder) / "input_check.json", Counting()
    screened = [str(check_input_once(record, backbone, InputSpec(), make_pairs(300))) for _ in range(2)]
    try:
        check_input(PlusMinusOneBackbone(), InputSpec(color="bgr"), make_pairs(120))
    except ConfigError as error:
        images = {"screened": screened, "num_images": backbone.num_images}
        torch.save({"line": str(check), "refusal": str(error)} | images, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()
    end_process(0)


def test_two_ranks_share_the_work_and_agree_with_one(tmp_path: Path) -> None:
    mp.spawn(_check_on_rank, args=(str(tmp_path),), nprocs=2, join=True)
    outcomes = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    # Each half of the conversions, and the second time from the record.
    assert [outcome.pop("num_images") for outcome in outcomes] == [8 * 300 - 4 * (300 - 100)] * 2
    assert outcomes[0] == outcomes[1]
    assert outcomes[0]["screened"] == [str(check_input(PlusMinusOneBackbone(), InputSpec(), make_pairs(300)))] * 2
    assert outcomes[0]["line"] == str(check_input(PlusMinusOneBackbone(), InputSpec(), make_pairs(120)))
    assert "--color rgb" in outcomes[0]["refusal"]


def test_plain_values_make_the_same_check_again() -> None:
    made = InputCheck(InputSpec(), (112, 96), 600, 5.26, BGR_IMAGENET, 5.5, -0.07, 0.43, 7, origin="family's usual")
    for check in (made, InputCheck(IMAGENET, (112, 112), 3, reason="too few")):
        assert from_plain(json.loads(json.dumps(to_plain(check), allow_nan=False))) == check


@pytest.mark.parametrize(
    "change",
    [
        {"size": [112]},
        {"size": None},
        {"num_pairs": "many"},
        {"d_prime": float("nan")},
        {"gap_low": "1"},
        {"best_d_prime": 10**400},
        {"declared": {"color": "grey", "mean": [0] * 3, "std": [1] * 3}},
        {"best_alternative": []},
        {"d_prime": None},
    ],
)
def test_plain_values_that_are_no_check_are_refused(change: dict[str, Any]) -> None:
    values = to_plain(InputCheck(InputSpec(), (112, 112), 600, 5.26, IMAGENET, 5.5, 0.07, 0.43, 7))
    with pytest.raises(DataError, match="no outcome of an input check: "):
        from_plain(values | change)
    with pytest.raises(DataError, match="no outcome"):
        from_plain({"outcome": "input: rgb"})


def test_outcomes_in_words() -> None:
    check = InputCheck(InputSpec(), (112, 112), 600, 5.26, IMAGENET, 5.3, -0.07, 0.43, 7)
    assert check.outcome == (
        "not the best of 8 inputs on 600 pairs, d' 5.26; in doubt against rgb, mean 123.675 116.28 103.53, "
        "std 58.395 57.12 57.375: 5.30"
    )
    check = InputCheck(InputSpec(), (112, 112), 600, 5.26)
    assert check.outcome == "on 600 pairs, d' 5.26; the network takes no other input to compare with"


def test_a_check_is_made_once_for_a_network_an_input_and_pairs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record, pairs, backbone = tmp_path / "input_check.json", make_pairs(), Counting()
    first = check_input_once(record, backbone, InputSpec(), pairs)
    num_images = backbone.num_images
    assert num_images == 8 * 320
    caplog.clear()
    assert check_input_once(record, backbone, InputSpec(), pairs, origin="family's usual") == replace(
        first, origin="family's usual"
    )
    assert backbone.num_images == num_images
    assert caplog.messages == [f"{first} (from {record})"]
    check_input_once(record, backbone, InputSpec(), make_pairs(120))
    assert backbone.num_images == num_images + 8 * 240
    check_input_once(None, backbone, InputSpec(), make_pairs(120))
    assert backbone.num_images == num_images + 2 * 8 * 240


def test_a_record_of_an_older_version_is_measured_anew(tmp_path: Path) -> None:
    record, pairs, backbone = tmp_path / "input_check.json", make_pairs(), Counting()
    check = check_input_once(record, backbone, InputSpec(), pairs)
    stored = json.loads(record.read_text())
    older = {name: value for name, value in stored["key"].items() if name != "version"}
    record.write_text(json.dumps({"key": older, "values": {"outcome": str(check)}}))
    assert check_input_once(record, backbone, InputSpec(), pairs) == check
    assert backbone.num_images == 2 * 8 * 320
    stored["values"]["d_prime"] = "high"
    record.write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=r"input_check\.json: damaged: no outcome .*; remove it to check the"):
        check_input_once(record, backbone, InputSpec(), pairs)


def test_a_refused_input_is_not_kept_and_a_doubt_is_told_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "input_check.json"
    message = r"the family's usual input \(bgr, mean 127\.5, std 127\.5\) is not what this network was trained"
    with pytest.raises(ConfigError, match=message):
        check_input_once(record, Counting(), InputSpec(color="bgr"), make_pairs(), origin="family's usual")
    assert not record.exists()
    check_input_once(record, Counting(), InputSpec(), make_pairs())
    stored = json.loads(record.read_text())
    stored["values"] |= {"best_d_prime": stored["values"]["d_prime"] + 0.001, "gap_low": -1.0}
    record.write_text(json.dumps(stored))
    caplog.clear()
    check_input_once(record, Counting(), InputSpec(), make_pairs(), origin="family's usual")
    assert "with the family's usual rgb, mean 127.5, std 127.5; no certain difference" in caplog.text
    # A stored figure beyond doubt is refused like a measured one.
    stored["values"] |= {"best_d_prime": 2 * stored["values"]["d_prime"], "gap_low": 1.0}
    record.write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="is not what this network was trained"):
        check_input_once(record, Counting(), InputSpec(), make_pairs())


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_pretrained_network_is_right_with_its_own_input_only(real_data: Path) -> None:
    """The right input, and two wrong ones that cost less than half a percent of accuracy."""
    backbone = create_backbone(f"onnx:{real_data / 'models' / 'mobilefacenet128.onnx'}")
    pairs = PairSet.load(real_data / "lfw" / "lfw.bin")
    check = check_input(backbone, IMAGENET, pairs)
    assert check.d_prime == pytest.approx(5.50, abs=0.02)
    assert check.best_alternative == InputSpec()
    assert check.best_d_prime == pytest.approx(5.26, abs=0.02)
    # The interval that excludes zero here refuses ±1 where that is declared, with the two in each other's place.
    assert check.gap_high is not None
    assert check.gap_high < 0
    message = r"better with rgb, mean 123\.675 116\.28 103\.53, .*: d' 5\.50 instead of 5\.19"
    with pytest.raises(ConfigError, match=message):
        check_input(backbone, replace(IMAGENET, color="bgr"), pairs)
