"""Several data sets as one."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gkd.core.errors import ConfigError, DataError
from gkd.data import RecordFile
from gkd.data.joined import JoinedFaces
from gkd.data.sampling.passes import WeightedFaces
from tests.data.faces import write_faces
from tests.data.sampling.labelled import Labelled

FIRST = Labelled([0, 0, 1, 2], identity_names=("ann", "bob", "cid"), name="first")
SECOND = Labelled([1, 0, 1], identity_names=("dot", "bob"), name="second")
NAMELESS = Labelled([0, 1], name="nameless")


def _join(*sets: Labelled, **changes: Any) -> JoinedFaces:
    settings = {"weights": [1.0] * len(sets), "identities": "separate"} | changes
    return JoinedFaces(sets, **settings)


def test_separate_identities() -> None:
    joined = _join(FIRST, SECOND, NAMELESS)
    assert (len(joined), joined.num_identities) == (9, 7)
    assert joined.labels.tolist() == [0, 0, 1, 2, 4, 3, 4, 5, 6]
    assert joined.labels.dtype == np.int64
    assert joined.identity_names is None
    assert _join(FIRST, SECOND).identity_names == ("ann", "bob", "cid", "dot", "bob")


def test_identities_by_name() -> None:
    joined = _join(FIRST, SECOND, identities="by_name")
    assert joined.identity_names == ("ann", "bob", "cid", "dot")
    assert joined.num_identities == 4
    assert joined.labels.tolist() == [0, 0, 1, 2, 1, 3, 1]


@pytest.mark.parametrize("identities", ["separate", "by_name"])
def test_images_labels_and_places(identities: str) -> None:
    joined = _join(FIRST, SECOND, identities=identities)
    expected = [("first", 0), ("first", 1), ("first", 2), ("first", 3), ("second", 0), ("second", 1), ("second", 2)]
    for index, (name, inner) in enumerate(expected):
        assert joined[index] == (f"{name} {inner}".encode(), joined.labels[index])
        assert joined.describe(index) == f"{name}: image {inner}"
    for index in (-1, 7):
        with pytest.raises(IndexError, match=f"no image {index}; the joined sets have 7"):
            joined[index]
        with pytest.raises(IndexError, match="no image"):
            joined.describe(index)


def test_labels_are_not_to_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        _join(FIRST).labels[0] = 1


def test_labels_beyond_a_sets_identities() -> None:
    wrong = Labelled([0, 1, 2], name="wrong")
    wrong.num_identities = 2
    joined = _join(FIRST, wrong)
    with pytest.raises(DataError, match="data set 2: labels 0 to 2, but 2 identities"):
        _ = joined.labels
    with pytest.raises(DataError, match="wrong: image 2: label 2, but its set has 2 identities"):
        joined[6]


def test_weighted_ranges() -> None:
    joined = _join(FIRST, SECOND, weights=[2, 0.5])
    assert joined.weighted_ranges == ((range(0, 4), 2.0), (range(4, 7), 0.5))
    assert isinstance(joined, WeightedFaces)
    assert not isinstance(FIRST, WeightedFaces)


@pytest.mark.parametrize("identities", ["separate", "by_name"])
def test_one_set_of_weight_1_is_that_set(tmp_path: Path, identities: Any) -> None:
    faces = write_faces(tmp_path / "a.rec")
    (tmp_path / "a.identities.txt").write_text("ann\nbob\ncid\ndot\n")
    alone = RecordFile(tmp_path / "a.rec")
    joined = JoinedFaces([alone], weights=[1], identities=identities)
    assert [joined[index] for index in range(len(joined))] == faces
    assert np.array_equal(joined.labels, alone.labels)
    for attribute in ("fingerprint", "num_identities", "identity_names"):
        assert getattr(joined, attribute) == getattr(alone, attribute)
    assert joined.describe(3) == alone.describe(3)
    again = pickle.loads(pickle.dumps(joined))
    assert again[19] == faces[19]


def test_fingerprints_tell_apart_what_differs() -> None:
    different = [
        _join(FIRST, SECOND),
        _join(SECOND, FIRST),
        _join(FIRST, SECOND, weights=[1, 2]),
        _join(FIRST, SECOND, identities="by_name"),
        _join(FIRST, Labelled([1, 0, 1], identity_names=("dot", "cid"), name="second"), identities="by_name"),
        _join(FIRST),
        _join(FIRST, weights=[2]),
    ]
    for one, other in itertools.combinations(different, 2):
        assert one.fingerprint != other.fingerprint
    assert _join(FIRST, SECOND).fingerprint == _join(FIRST, SECOND).fingerprint
    assert all(len(joined.fingerprint) == 64 for joined in different[:5])


def test_shared_names_of_separate_identities_are_told(caplog: pytest.LogCaptureFixture) -> None:
    _join(FIRST, SECOND)
    assert "1 identity names are in more than one data set, and are kept apart" in caplog.text


def test_streaming_sets_are_seen() -> None:
    streamed = Labelled([0])
    streamed.is_streamed = True  # type: ignore[attr-defined]
    assert _join(FIRST, streamed).is_streamed
    assert not _join(FIRST).is_streamed


@pytest.mark.parametrize(
    ("sets", "changes", "error", "message"),
    [
        ([], {}, ConfigError, "no data sets to join; name at least one"),
        ([FIRST], {"weights": [1, 2]}, ConfigError, "1 data sets need as many weights, got 2"),
        ([FIRST], {"identities": "name"}, ConfigError, "identities must be .*, got 'name'"),
        ([FIRST, SECOND], {"weights": [1, 0]}, ConfigError, "weight of data set 2 must be above 0, got 0"),
        ([FIRST], {"weights": [float("nan")]}, ConfigError, "weight of data set 1 must be above 0, got nan"),
        ([FIRST], {"weights": [float("inf")]}, ConfigError, "weight of data set 1 must be above 0, got inf"),
        ([FIRST], {"weights": [0.1]}, ConfigError, "weight 0.1 of data set 1 takes none of its 4 images"),
        (
            [FIRST, NAMELESS],
            {"identities": "by_name"},
            DataError,
            r"data set 2 \(nameless: image 0 …\) has no identity names",
        ),
        (
            [Labelled([0, 1], identity_names=("ann", "ann"))],
            {"identities": "by_name"},
            DataError,
            "data set 1 .* has the identity name 'ann' twice",
        ),
    ],
)
def test_refusals(sets: list[Labelled], changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _join(*sets, **changes)


def test_sets_that_fetch_ahead_are_told_what_is_needed() -> None:
    class Fetching(Labelled):
        def will_need(self, indices: np.ndarray) -> None:
            asked.append((len(self), indices.tolist()))

    asked: list[tuple[int, list[int]]] = []
    sets = [Fetching([0] * 3), Labelled([0] * 4), Fetching([0] * 5)]
    JoinedFaces(sets, weights=[1, 1, 1], identities="separate").will_need(np.array([11, 1, 5, 8, 0]))
    assert asked == [(3, [1, 0]), (5, [4, 1])]
