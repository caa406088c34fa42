"""The similarity transform against a plain least-squares solution, and the crops that it makes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gkd.core.errors import ConfigError, DataError
from gkd.data.alignment import align_face, estimate_similarity, is_mirrored, template

Array = npt.NDArray[np.float64]


def slow_similarity(source: Array, target: Array) -> Array:
    """[a -b tx; b a ty] with the least squares, by the normal equations written out and Gaussian elimination.

    The objective is linear in (a, b, tx, ty), and a rotation times a scale of 0 or more is any (a, b).
    """
    rows, values = [], []
    for (x, y), (u, v) in zip(source.tolist(), target.tolist(), strict=True):
        rows += [[x, -y, 1.0, 0.0], [y, x, 0.0, 1.0]]
        values += [u, v]
    normal = [[sum(row[i] * row[j] for row in rows) for j in range(4)] for i in range(4)]
    right = [sum(row[i] * value for row, value in zip(rows, values, strict=True)) for i in range(4)]
    a, b, tx, ty = solve(normal, right)
    return np.array([[a, -b, tx], [b, a, ty]])


def solve(matrix: list[list[float]], values: list[float]) -> list[float]:
    rows = [[*row, value] for row, value in zip(matrix, values, strict=True)]
    for column in range(len(rows)):
        pivot = max(range(column, len(rows)), key=lambda place: abs(rows[place][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for place in range(len(rows)):
            if place != column:
                factor = rows[place][column] / rows[column][column]
                rows[place] = [left - factor * right for left, right in zip(rows[place], rows[column], strict=True)]
    return [row[-1] / row[place] for place, row in enumerate(rows)]


def apply(matrix: Array, points: Array) -> Array:
    return np.asarray(points @ matrix[:, :2].T + matrix[:, 2])


class TestSimilarity:
    @given(seed=st.integers(0, 10_000), num_points=st.integers(2, 9), noise=st.sampled_from([0.0, 1.0, 30.0]))
    @settings(max_examples=200, deadline=None)
    def test_equals_least_squares(self, seed: int, num_points: int, noise: float) -> None:
        stream = np.random.default_rng(seed)
        source = stream.uniform(0, 200, (num_points, 2))
        angle, scale = stream.uniform(-math.pi, math.pi), stream.uniform(0.1, 4)
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        target = source @ turn.T + stream.uniform(-100, 100, 2) + noise * stream.standard_normal((num_points, 2))
        found = estimate_similarity(source, target)
        assert np.allclose(found, slow_similarity(source, target), rtol=1e-6, atol=1e-6)
        if noise == 0.0:
            assert np.allclose(apply(found, source), target, atol=1e-8)

    def test_umeyama_1991_example(self) -> None:
        """The numbers of the paper's section on an example: a reflection would fit better, and must not be taken."""
        source, target = np.array([[0.0, 0], [1, 0], [0, 2]]), np.array([[0.0, 0], [-1, 0], [0, 2]])
        found = estimate_similarity(source, target)
        assert np.allclose(found[:, :2] / 0.721, [[0.832, 0.555], [-0.555, 0.832]], atol=2e-3)
        assert np.allclose(found[:, 2], [-0.800, 0.400], atol=1e-3)

    def test_no_reflection_of_a_mirrored_face(self) -> None:
        mirrored = template() * [-1, 1] + [112, 0]
        assert np.linalg.det(estimate_similarity(mirrored, template())[:, :2]) > 0

    def test_points_on_a_line(self) -> None:
        source = np.array([[0.0, 0], [1, 1], [3, 3]])
        target = np.array([[5.0, 5], [5, 7], [5, 11]])
        assert np.allclose(apply(estimate_similarity(source, target), source), target)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_numbers_that_are_none(self, value: float) -> None:
        points = template()
        points[2, 1] = value
        with pytest.raises(DataError, match="not all finite"):
            estimate_similarity(points, template())

    def test_points_at_one_place(self) -> None:
        with pytest.raises(DataError, match="all at one place"):
            estimate_similarity(np.full((5, 2), 3.0), template())


class TestTemplate:
    def test_values(self) -> None:
        expected = [
            (38.2946, 51.6963),
            (73.5318, 51.5014),
            (56.0252, 71.7366),
            (41.5493, 92.3655),
            (70.7299, 92.2041),
        ]
        assert template().tolist() == [list(point) for point in expected]

    def test_other_sizes_scale(self) -> None:
        assert np.allclose(template(224), 2 * template())
        template(112)[0] = 0
        assert template()[0, 0] == 38.2946, "the template was changed by a caller"

    @pytest.mark.parametrize("size", [0, 15, 1025])
    def test_sizes_out_of_range(self, size: int) -> None:
        with pytest.raises(ConfigError, match=f"--size: must be 16 to 1024 pixels, got {size}"):
            template(size)

    def test_mirrored_points_are_known_at_any_angle(self) -> None:
        for angle in np.linspace(0, 2 * math.pi, 9):
            turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            points = template() @ turn.T
            assert not is_mirrored(points)
            assert is_mirrored(points[[1, 0, 2, 4, 3]])


class TestCrops:
    def test_points_at_the_template_change_nothing(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        assert np.array_equal(align_face(image, template()), image)

    def test_whole_pixels_and_black_border(self) -> None:
        image = np.random.default_rng(1).integers(1, 256, (112, 112, 3), dtype=np.uint8)
        crop = align_face(image, template() + [-7.0, 20.0])
        assert np.array_equal(crop[:92, 7:], image[20:, :105])
        assert not crop[92:].any()
        assert not crop[:, :7].any()

    def test_against_bilinear_loops(self) -> None:
        stream = np.random.default_rng(2)
        coarse = stream.uniform(0, 256, (10, 12, 3))
        image = np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)
        points = template() * 0.7 + [10, 5] + stream.normal(0, 1.5, (5, 2))
        crop = align_face(image, points, 64).astype(np.float64)
        matrix = slow_similarity(points, template(64))
        turn, shift = matrix[:, :2].tolist(), matrix[:, 2].tolist()
        det = turn[0][0] * turn[1][1] - turn[0][1] * turn[1][0]
        errors = []
        for row in range(0, 64, 5):
            for column in range(0, 64, 5):
                u, v = column - shift[0], row - shift[1]
                x, y = (turn[1][1] * u - turn[0][1] * v) / det, (turn[0][0] * v - turn[1][0] * u) / det
                errors.append(np.abs(crop[row, column] - bilinear(image, x, y)).max())
        # OpenCV rounds places to 1/32 pixel in some versions.
        assert np.mean(errors) < 1.0
        assert np.max(errors) < 10.0

    def test_other_sizes_show_the_same(self) -> None:
        image = np.zeros((200, 200, 3), np.uint8)
        image[80:120, 80:120] = 255
        points = template() + [40.0, 40.0]
        small, large = align_face(image, points, 112), align_face(image, points, 224)
        assert np.abs(small.astype(int) - large[::2, ::2]).mean() < 4

    @pytest.mark.parametrize("shift", [(-500.0, 0.0), (0.0, -500.0), (500.0, 0.0), (0.0, 500.0)])
    def test_faces_outside_the_photo(self, shift: tuple[float, float]) -> None:
        with pytest.raises(DataError, match="the landmarks lie outside the photo of 120x100 pixels"):
            align_face(np.zeros((100, 120, 3), np.uint8), template() + shift)

    def test_points_without_likeness_to_a_face(self) -> None:
        with pytest.raises(DataError, match="no likeness to a face"):
            align_face(np.zeros((100, 120, 3), np.uint8), (template() - 60) * 2000)


def bilinear(image: npt.NDArray[np.uint8], x: float, y: float) -> Array:
    """The colour at (x, y), pixels outside being 0."""
    left, top = math.floor(x), math.floor(y)
    total = np.zeros(3)
    for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
            total += (1 - abs(y - row)) * (1 - abs(x - column)) * image[row, column].astype(np.float64)
    return total
