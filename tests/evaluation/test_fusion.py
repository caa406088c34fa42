"""Flip fusion against loops, what it shares with the protocol, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.evaluation import FUSIONS, fuse, squared_distances, verify_pairs


def drawn(num_images: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw float32 embeddings of images and mirror images, of lengths from about 2 to 200."""
    generator = np.random.default_rng(seed)
    original = generator.normal(size=(num_images, 8)) * np.geomspace(1, 50, num_images)[:, None]
    mirrored = original + generator.normal(size=(num_images, 8)) * np.geomspace(20, 1, num_images)[:, None]
    return original.astype(np.float32), mirrored.astype(np.float32)


def length(row: list[float]) -> float:
    return math.sqrt(math.fsum(value * value for value in row))


def by_loops(original: list[list[float]], mirrored: list[list[float]], how: str) -> list[list[float]]:
    """Row by row and value by value, from the definition with unit vectors and lengths."""
    fused = []
    for first, second in zip(original, mirrored, strict=True):
        first_unit = [value / length(first) for value in first]
        second_unit = [value / length(second) for value in second]
        weights = {
            "sum": (length(first), length(second)),
            "none": (length(first), 0.0),
            "unit_sum": (1.0, 1.0),
            "norm_weighted": tuple(each / (length(first) + length(second)) for each in (length(first), length(second))),
        }[how]
        fused.append([weights[0] * a + weights[1] * b for a, b in zip(first_unit, second_unit, strict=True)])
    return fused


@pytest.mark.parametrize("how", list(FUSIONS))
def test_every_fusion_equals_the_loops(how: str) -> None:
    original, mirrored = drawn()
    fused = fuse(original, mirrored, how)
    assert fused.dtype == np.float64
    np.testing.assert_allclose(fused, by_loops(original.tolist(), mirrored.tolist(), how), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("how", list(FUSIONS))
def test_inputs_are_unchanged_and_rows_are_independent(how: str) -> None:
    original, mirrored = drawn()
    before = original.copy(), mirrored.copy()
    fused = fuse(original, mirrored, how)
    np.testing.assert_array_equal(original, before[0])
    np.testing.assert_array_equal(mirrored, before[1])
    order = np.random.default_rng(1).permutation(12)
    np.testing.assert_array_equal(fuse(original[order], mirrored[order], how), fused[order])
    fused[:] = 0
    np.testing.assert_array_equal(original, before[0])


def test_the_default_is_the_sum_of_the_protocol() -> None:
    original, mirrored = drawn()
    np.testing.assert_array_equal(fuse(original, mirrored), original.astype(np.float64) + mirrored)


@pytest.mark.parametrize("how", ["sum", "unit_sum", "norm_weighted"])
def test_an_image_and_its_mirror_image_may_change_places(how: str) -> None:
    original, mirrored = drawn()
    np.testing.assert_allclose(fuse(mirrored, original, how), fuse(original, mirrored, how), rtol=1e-15)


def test_the_norm_weighted_mean_points_where_the_sum_does_and_is_at_most_of_length_one() -> None:
    original, mirrored = drawn()
    weighted = fuse(original, mirrored, "norm_weighted")
    np.testing.assert_allclose(squared_distances(weighted, fuse(original, mirrored)), 0, atol=1e-28)
    assert (np.linalg.norm(weighted, axis=1) < 1).all()
    np.testing.assert_allclose(np.linalg.norm(fuse(original, 3 * original, "norm_weighted"), axis=1), 1, rtol=1e-12)


def test_figures_differ_only_between_the_fusions_that_differ_in_direction() -> None:
    original, mirrored = drawn(80, seed=2)
    is_same = np.arange(40) % 2 == 0
    rows = {how: fuse(original, mirrored, how) for how in FUSIONS}
    distances = {how: verify_pairs(each[0::2], each[1::2], is_same).distances for how, each in rows.items()}
    np.testing.assert_allclose(distances["norm_weighted"], distances["sum"], atol=1e-12)
    for how in ("none", "unit_sum"):
        assert np.abs(distances[how] - distances["sum"]).max() > 0.01


def test_unit_embeddings_of_equal_length_make_sums_alike() -> None:
    original, mirrored = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in drawn())
    np.testing.assert_allclose(fuse(original, mirrored, "sum"), fuse(original, mirrored, "unit_sum"), atol=1e-6)


def test_half_precision_does_not_overflow() -> None:
    rows = np.full((2, 4), 6e4, dtype=np.float16)
    assert np.isfinite(fuse(rows, rows)).all()
    assert np.isfinite(fuse(rows, rows, "norm_weighted")).all()


def test_no_images_give_no_rows() -> None:
    for how in FUSIONS:
        assert fuse(np.empty((0, 8)), np.empty((0, 8)), how).shape == (0, 8)


def test_an_unknown_fusion_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="`mean`; choose one of sum, none, unit_sum, norm_weighted"):
        fuse(*drawn(), "mean")


@pytest.mark.parametrize(("first", "second"), [((3, 4), (3, 5)), ((3, 4), (2, 4)), ((4,), (4,))])
def test_shapes_that_do_not_fit_are_refused(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"must be two .* arrays of one shape"):
        fuse(np.ones(first), np.ones(second))


@pytest.mark.parametrize("how", ["unit_sum", "norm_weighted"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_an_embedding_without_a_direction_is_refused_by_what_must_normalise(how: str, value: float) -> None:
    original, mirrored = drawn()
    mirrored[5] = value
    with pytest.raises(DataError, match=r"^1 of 12 embeddings of a mirror image are NaN, .* that of image 5;"):
        fuse(original, mirrored, how)
    with pytest.raises(DataError, match=r"^1 of 12 embeddings of an image are"):
        fuse(mirrored, original, how)
