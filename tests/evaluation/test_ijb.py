"""Template pooling, pair scores and TAR at FAR against loops; ties, tiles, and all that can be unfit."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import DataError
from gkd.evaluation import FAR_TARGETS, roc_curve, tar_at_far, template_scores
from gkd.evaluation.ijb import IjbOptions, verify_templates
from gkd.evaluation.template_scores import OperatingPoint, operating_points, pool_templates, score_pairs
from tests.reference import ijb as reference
from tests.reference import verification as verification_reference

NUM_TEMPLATES = 13
TARGETS = (*FAR_TARGETS, 0.3, 0.5, 1.0)


def make_images(num_images: int = 90, dim: int = 7, seed: int = 0) -> dict[str, np.ndarray]:
    """Images of 13 templates, out of order; medias are shared within a template and between templates."""
    generator = np.random.default_rng(seed)
    templates = np.concatenate((np.arange(NUM_TEMPLATES), generator.integers(0, NUM_TEMPLATES, num_images)))
    templates = generator.permutation(templates[:num_images])
    return {
        "embeddings": generator.normal(0.3, 1.0, (num_images, dim)).astype(np.float32) * 20,
        "template_of": templates,
        "media_of": generator.integers(5, 9, num_images),
        "detector_scores": generator.uniform(0.1, 1.0, num_images),
    }


def pool(images: dict[str, np.ndarray], **changes: Any) -> np.ndarray:
    given = {**images, **changes}
    embeddings, templates, medias = (given.pop(key) for key in ("embeddings", "template_of", "media_of"))
    return pool_templates(embeddings, templates, medias, given.pop("num_templates", NUM_TEMPLATES), **given)


def plain_pool(images: dict[str, np.ndarray], with_scores: bool, use_norm_score: bool) -> np.ndarray:
    return reference.template_vectors(
        images["embeddings"],
        images["template_of"].tolist(),
        images["media_of"].tolist(),
        images["detector_scores"].tolist() if with_scores else None,
        use_norm_score,
    )


class TestPooling:
    @pytest.mark.parametrize("use_norm_score", [True, False])
    @pytest.mark.parametrize("with_scores", [True, False])
    @pytest.mark.parametrize("block_rows", [1, 4, 1024])
    def test_equals_the_loops(
        self, monkeypatch: pytest.MonkeyPatch, block_rows: int, with_scores: bool, use_norm_score: bool
    ) -> None:
        monkeypatch.setattr(template_scores, "_BLOCK_ROWS", block_rows)
        images = make_images()
        scores = images["detector_scores"] if with_scores else None
        found = pool(images, detector_scores=scores, use_norm_score=use_norm_score)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, plain_pool(images, with_scores, use_norm_score), rtol=0, atol=1e-6)

    def test_each_option_changes_the_result(self) -> None:
        images = make_images()
        results = [
            pool(images, detector_scores=scores, use_norm_score=use_norm_score)
            for scores in (images["detector_scores"], None)
            for use_norm_score in (True, False)
        ]
        for place, one in enumerate(results):
            assert all(np.abs(one - other).max() > 1e-3 for other in results[:place])

    def test_frames_of_a_video_count_as_one_photo(self) -> None:
        """A video of 50 frames weighs as much as one photo; as 50 photos it drowns the other."""
        embeddings = np.concatenate((np.tile([[1.0, 0.0]], (50, 1)), [[0.0, 1.0]])).astype(np.float32)
        template_of = np.zeros(51, np.int64)
        video = pool_templates(embeddings, template_of, np.append(np.full(50, 7), 8), 1)
        np.testing.assert_allclose(video, [[0.5**0.5, 0.5**0.5]], atol=1e-6)
        photos = pool_templates(embeddings, template_of, np.arange(51), 1)
        assert photos[0, 0] > 0.99

    def test_one_media_in_two_templates_is_two(self) -> None:
        embeddings = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]], np.float32)
        pooled = pool_templates(embeddings, np.array([0, 1, 1]), np.array([3, 3, 4]), 2)
        np.testing.assert_allclose(pooled, [[1.0, 0.0], [0.5**0.5, 0.5**0.5]], atol=1e-6)

    def test_the_order_of_images_does_not_matter(self) -> None:
        images = make_images()
        order = np.random.default_rng(1).permutation(90)
        shuffled = {key: values[order] for key, values in images.items()}
        np.testing.assert_allclose(pool(shuffled), pool(images), atol=1e-6)

    def test_inputs_are_unchanged(self) -> None:
        images = make_images()
        before = {key: values.copy() for key, values in images.items()}
        pool(images, use_norm_score=False)
        for key, values in images.items():
            np.testing.assert_array_equal(values, before[key])

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_embeddings_that_are_not_finite_are_named(self, value: float) -> None:
        images = make_images()
        images["embeddings"][[3, 8], 2] = value
        with pytest.raises(DataError, match=r"2 of 90 images \(3, 8\) have an embedding that is NaN, infinite or zero"):
            pool(images)

    def test_zero_embeddings(self) -> None:
        images = make_images()
        images["embeddings"][5] = 0
        assert np.isfinite(pool(images)).all()
        with pytest.raises(DataError, match=r"1 of 90 images \(5\)"):
            pool(images, use_norm_score=False)
        with pytest.raises(DataError, match=r"1 of 13 templates \(4\) sum up to nothing"):
            pool(images, detector_scores=np.where(images["template_of"] == 4, 0.0, 1.0))

    def test_huge_embeddings_do_not_overflow(self) -> None:
        images = make_images()
        huge = images["embeddings"] / np.abs(images["embeddings"]).max() * np.float32(3e38)
        np.testing.assert_allclose(pool(images, embeddings=huge), pool(images), atol=1e-6)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"template_of": np.zeros(4, np.int64)}, r"embeddings \(90, 7\) need a template, a media and a score"),
            ({"detector_scores": np.ones((90, 1))}, r"got \(90,\), \(90,\), \(90, 1\)"),
            ({"embeddings": np.zeros(90, np.float32)}, r"embeddings \(90,\)"),
            ({"num_templates": 15}, r"2 of 15 templates \(13, 14\) have no image"),
            ({"num_templates": 12}, "template numbers go from 0 to 12, of 12"),
            ({"template_of": np.full(90, -1)}, "template numbers go from -1 to -1"),
            (
                {"detector_scores": np.full(90, np.nan)},
                r"90 of 90 images \(0, 1, 2, 3, 4, 5, 6, 7, …\) have a detector",
            ),
        ],
    )
    def test_wrong_inputs_are_refused(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(DataError, match=message):
            pool(make_images(), **changes)

    def test_memory_is_that_of_a_block(self) -> None:
        num_images, dim = 20_000, 64
        embeddings = np.ones((num_images, dim), np.float32)
        templates = np.arange(num_images) % 50
        tracemalloc.start()
        pool_templates(embeddings, templates, np.zeros(num_images, np.int64), 50)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 12 * num_images * 8 + 4 * 1024 * dim * 8


def unit_rows(num_rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestScores:
    @pytest.mark.parametrize("tile", [1, 3, 1024])
    @pytest.mark.parametrize("dense_share", [0.0, 0.3, 2.0])
    @pytest.mark.parametrize(("lows", "highs"), [(range(20), range(20)), (range(5), range(5, 20)), ([4], [9])])
    def test_equal_the_loops(
        self, monkeypatch: pytest.MonkeyPatch, tile: int, dense_share: float, lows: Any, highs: Any
    ) -> None:
        """Whether tiles are multiplied or gathered, one side or many, turned or not."""
        monkeypatch.setattr(template_scores, "_TILE", tile)
        monkeypatch.setattr(template_scores, "_DENSE_SHARE", dense_share)
        monkeypatch.setattr(template_scores, "_GATHERED_PAIRS", 7)
        generator, templates = np.random.default_rng(1), unit_rows(20)
        left, right = generator.choice(lows, 150), generator.choice(highs, 150)
        found = score_pairs(templates, left, right)
        assert found.dtype == np.float32
        expected = reference.pair_scores(templates.astype(np.float64), left.tolist(), right.tolist())
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    def test_many_tiles(self) -> None:
        """More than 65,536 tiles, whose numbers no longer fit into two bytes."""
        generator = np.random.default_rng(2)
        templates = unit_rows(600, dim=4)
        left, right = generator.integers(0, 600, (2, 3000))
        expected = np.einsum("pd,pd->p", templates[left], templates[right])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(template_scores, "_TILE", 2)
            np.testing.assert_allclose(score_pairs(templates, left, right), expected, atol=1e-6)

    def test_no_pairs(self) -> None:
        empty = np.empty(0, np.int32)
        assert score_pairs(unit_rows(3), empty, empty).shape == (0,)

    def test_wrong_pairs_are_refused(self) -> None:
        templates = unit_rows(5)
        with pytest.raises(DataError, match="the shapes do not fit"):
            score_pairs(templates, np.array([0, 1]), np.array([0]))
        with pytest.raises(DataError, match="pairs name the templates 1 to 5, of 5"):
            score_pairs(templates, np.array([0, 1]), np.array([1, 5]))
        with pytest.raises(DataError, match="pairs name the templates -1 to 1"):
            score_pairs(templates, np.array([-1, 1]), np.array([1, 4]))

    def test_memory_does_not_grow_with_the_products_of_pairs(self) -> None:
        """Gathering the vectors of all pairs at once, as is often done, takes 100 times the scores."""
        templates = unit_rows(500, dim=256)
        left, right = np.random.default_rng(0).integers(0, 500, (2, 200_000)).astype(np.int32)
        tracemalloc.start()
        score_pairs(templates, left, right)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 60 * len(left)


def score_cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    is_same = generator.random(150) < 0.4
    scores = generator.normal(is_same * 1.0, 1.0).astype(np.float32)
    mixed = np.tile([True, False], 30)
    return {
        "random": (scores, is_same),
        "ties": (np.round(scores, 1), is_same),
        "two values": ((scores > 0).astype(np.float32), is_same),
        "all equal": (np.zeros(60, np.float32), mixed),
        "perfect": (np.where(mixed, 1.0, -1.0), mixed),
        "reversed": (np.where(mixed, -1.0, 1.0), mixed),
        "one of each": (np.array([0.1, 0.2]), np.array([True, False])),
        "top tie of different pairs": (np.array([1.0, 1.0, 0.5, 0.2]), np.array([False, False, True, True])),
    }


class TestOperatingPoints:
    @pytest.mark.parametrize("name", score_cases())
    def test_equal_counting(self, name: str) -> None:
        scores, is_same = score_cases()[name]
        plain = scores.tolist(), is_same.tolist()
        points = operating_points(scores, is_same, TARGETS)
        for target, point in points.items():
            tar = verification_reference.tar_at_far(*plain, target)
            if point is None:
                assert tar is None
                continue
            threshold = reference.threshold_at_far(*plain, target)
            assert (point.tar, point.threshold) == (tar, threshold)
            far, reached = verification_reference.rates(*plain, point.threshold)
            assert (point.num_false_accepts, point.tar) == (round(far * int((~is_same).sum())), reached)

    @pytest.mark.parametrize("num_pairs", [999, 1000, 50_000])
    @pytest.mark.parametrize("decimals", [1, 3, 7])
    def test_equal_the_curve(self, num_pairs: int, decimals: int) -> None:
        generator = np.random.default_rng(num_pairs)
        is_same = generator.random(num_pairs) < 0.02
        scores = np.round(generator.normal(is_same * 2.0, 1.0), decimals).astype(np.float32)
        targets = [*FAR_TARGETS, *generator.random(50).tolist(), *(np.arange(1, 40) / (~is_same).sum()).tolist()]
        curve = tar_at_far(roc_curve(scores, is_same), targets)
        points = operating_points(scores, is_same, targets)
        assert {target: None if point is None else point.tar for target, point in points.items()} == curve

    def test_a_far_that_cannot_be_measured_is_none(self) -> None:
        is_same = np.arange(2000) < 1000
        points = operating_points(np.linspace(1, 0, 2000), is_same)
        assert [target for target, point in points.items() if point is None] == [1e-4, 1e-5, 1e-6]
        assert points[1e-3] == OperatingPoint(1.0, np.linspace(1, 0, 2000)[1000], 1)

    def test_nothing_accepted(self) -> None:
        point = operating_points(np.array([1.0, 1.0, 0.5]), np.array([False, False, True]), [0.5])[0.5]
        assert point == OperatingPoint(0.0, np.inf, 0)

    def test_inputs_are_unchanged(self) -> None:
        scores, is_same = score_cases()["random"]
        before = scores.copy()
        operating_points(scores, is_same)
        np.testing.assert_array_equal(scores, before)

    def test_wrong_inputs_are_refused(self) -> None:
        with pytest.raises(DataError, match=r"scores \(3,\) and is_same \(2,\)"):
            operating_points(np.zeros(3), np.array([True, False]))
        with pytest.raises(DataError, match="2 same and 0 different pairs"):
            operating_points(np.zeros(2), np.array([True, True]))
        with pytest.raises(DataError, match="1 of 2 scores are NaN or infinite"):
            operating_points(np.array([0.0, np.nan]), np.array([True, False]))


def make_pairs(num_pairs: int = 300, seed: int = 3) -> dict[str, np.ndarray]:
    left, right = np.random.default_rng(seed).integers(0, NUM_TEMPLATES, (2, num_pairs))
    return {"left": left, "right": right, "is_same": left % 3 == right % 3}


class TestVerifyTemplates:
    @pytest.mark.parametrize("use_norm_score", [True, False])
    @pytest.mark.parametrize("use_detector_score", [True, False])
    def test_equals_the_loops(self, use_detector_score: bool, use_norm_score: bool) -> None:
        images, pairs = make_images(), make_pairs()
        options = IjbOptions(use_detector_score=use_detector_score, use_norm_score=use_norm_score)
        result = verify_templates(**images, **pairs, name="IJBC", options=options)
        vectors = plain_pool(images, use_detector_score, use_norm_score)
        scores = reference.pair_scores(vectors, pairs["left"].tolist(), pairs["right"].tolist())
        # Pairs of equal templates, and turned ones, tie in one place and not to the last bit in the other.
        scores = np.round(scores, 5).tolist()
        expected = {
            target: verification_reference.tar_at_far(scores, pairs["is_same"].tolist(), target)
            for target in FAR_TARGETS
        }
        found = result.tar_at_far
        assert {far for far, tar in found.items() if tar is None} == {1e-3, 1e-4, 1e-5, 1e-6}
        for far, tar in expected.items():
            assert found[far] == (None if tar is None else pytest.approx(tar, abs=0.011))
        assert (result.num_images, result.num_templates, result.num_pairs) == (90, NUM_TEMPLATES, 300)
        assert result.num_same == int(pairs["is_same"].sum())
        assert result.options == options
        assert set(result.seconds) == {"pooling", "scoring", "rates"}

    def test_the_defaults_are_those_of_the_public_evaluation(self) -> None:
        options = IjbOptions()
        assert (options.use_flip_test, options.use_detector_score, options.use_norm_score) == (True, True, True)
        images, pairs = make_images(), make_pairs()
        explicit = verify_templates(**images, **pairs, options=options)
        assert verify_templates(**images, **pairs).tar_at_far == explicit.tar_at_far

    def test_result_is_plain_json(self) -> None:
        images, pairs = make_images(), make_pairs()
        pairs["is_same"] = pairs["left"] != pairs["right"]  # so the most alike pairs are different ones
        content = json.loads(json.dumps(verify_templates(**images, **pairs, name="IJBB").to_json(), allow_nan=False))
        assert content["name"] == "IJBB"
        assert list(content["tar_at_far"]) == ["1e-1", "1e-2", "1e-3", "1e-4", "1e-5", "1e-6"]
        assert content["tar_at_far"]["1e-6"] is None
        assert content["options"] == {"use_flip_test": True, "use_detector_score": True, "use_norm_score": True}
        assert content["num_templates"] == NUM_TEMPLATES

    def test_an_infinite_threshold_is_none_in_json(self) -> None:
        embeddings = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
        result = verify_templates(
            embeddings, np.arange(3), np.arange(3), np.ones(3), np.array([0] * 10 + [0]), np.array([1] * 10 + [2]),
            np.array([False] * 10 + [True]),
        )  # fmt: skip
        assert result.threshold_at_far[1e-1] == np.inf
        assert result.to_json()["threshold_at_far"]["1e-1"] is None
        assert result.to_json()["tar_at_far"]["1e-1"] == 0.0

    def test_no_images_are_refused(self) -> None:
        empty = np.empty(0, np.int64)
        with pytest.raises(DataError, match="IJB: there are no images"):
            verify_templates(np.empty((0, 4)), empty, empty, empty, empty, empty, empty.astype(bool))
