"""Which classes are Primary: both groupings against loops, ties, ends and refused values."""

from __future__ import annotations

import itertools
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gkd.core import classes
from gkd.core.errors import ConfigError, DataError
from gkd.distill import GROUPINGS, CumulativeMass, TopK
from tests.reference import grouped_kd as reference

NUM_CLASSES = 17


def batch(num_samples: int = 6, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    student, teacher = (torch.randn(2, num_samples, NUM_CLASSES) * spread).unbind()
    return student, teacher, torch.randint(0, NUM_CLASSES, (num_samples,))


def marked(mask: Tensor) -> list[set[int]]:
    assert mask.dtype == torch.bool
    return [set(row.nonzero().flatten().tolist()) for row in mask]


def ranked_side(side: str, student: Tensor, teacher: Tensor) -> list[list[float]]:
    return (student if side == "student" else teacher).tolist()


@pytest.fixture(params=[1, 40, 10_000])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows one at a time, a few at a time (with a rest), and all at once."""
    monkeypatch.setattr(classes, "_CPU_CHUNK_ENTRIES", request.param)


def test_the_table_names_the_groupings() -> None:
    assert {"top_k": TopK, "cumulative_mass": CumulativeMass} == GROUPINGS


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("rank_by", ["student", "teacher"])
@pytest.mark.parametrize("k", [1, 2, 5, 16, 17])
def test_top_k_equals_a_loop(k: int, rank_by: Any) -> None:
    student, teacher, labels = batch()
    expected = reference.top_k(ranked_side(rank_by, student, teacher), labels.tolist(), k)
    assert marked(TopK(k=k, rank_by=rank_by)(student, teacher, labels)) == expected


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize(
    ("scope", "rank_by", "k_step", "temperature", "threshold"),
    list(itertools.product(["batch", "sample"], ["student", "teacher"], [1, 3, 100], [1.0, 4.0], [0.3, 0.93, 0.999])),
)
def test_cumulative_mass_equals_a_loop(
    scope: Any, rank_by: Any, k_step: int, temperature: float, threshold: float
) -> None:
    student, teacher, labels = batch()
    grouping = CumulativeMass(threshold=threshold, rank_by=rank_by, temperature=temperature, scope=scope, k_step=k_step)
    ranked = ranked_side(rank_by, student, teacher)
    expected = reference.cumulative_mass(ranked, labels.tolist(), threshold, temperature, scope, k_step)
    assert marked(grouping(student, teacher, labels)) == expected


def test_the_groupings_of_this_batch_differ() -> None:
    """The comparison above would be empty if every setting gave the same groups."""
    given = batch()
    sizes = [
        CumulativeMass(scope=scope, rank_by=side, temperature=temperature)(*given).sum(dim=1)
        for scope, side, temperature in itertools.product(("batch", "sample"), ("student", "teacher"), (1.0, 4.0))
    ]
    assert len({tuple(size.tolist()) for size in sizes}) == len(sizes)


@pytest.mark.parametrize("grouping", [TopK(k=4), CumulativeMass(), CumulativeMass(scope="sample")])
def test_the_target_is_primary_even_when_it_is_the_worst_class(grouping: Any) -> None:
    student, teacher, labels = batch()
    student.scatter_(1, labels[:, None], -50.0)
    mask = grouping(student, teacher, labels)
    assert mask.gather(1, labels[:, None]).all()


def test_k_counts_the_target() -> None:
    student, teacher, labels = batch()
    assert TopK(k=5)(student, teacher, labels).sum(dim=1).tolist() == [5] * 6
    student.scatter_(1, labels[:, None], 50.0)
    assert TopK(k=5)(student, teacher, labels).sum(dim=1).tolist() == [5] * 6


def test_ties_go_to_the_lower_class_index() -> None:
    student = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]]).repeat(3, 1)
    mask = TopK(k=3)(student, student, torch.tensor([4, 3, 1]))
    assert marked(mask) == [{4, 1, 0}, {3, 1, 0}, {1, 0, 2}]


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_ties_of_cumulative_mass(scope: Any) -> None:
    torch.manual_seed(1)
    student = torch.randint(0, 3, (5, NUM_CLASSES)).float()
    labels = torch.arange(5) * 3
    expected = reference.cumulative_mass(student.tolist(), labels.tolist(), 0.77, 1.0, scope, 1)
    assert marked(CumulativeMass(threshold=0.77, scope=scope)(student, student, labels)) == expected


def test_k_comes_from_the_natural_order_not_from_the_target() -> None:
    """One class holds the mass, so K is 1 and Primary the target alone, though the target has none of it."""
    student = torch.tensor([[20.0, 0.0, 0.0, 0.0]])
    assert marked(CumulativeMass()(student, student, torch.tensor([2]))) == [{2}]


def test_batch_scope_gives_one_k_and_sample_scope_its_own() -> None:
    student = torch.zeros(2, 10)
    student[0, 3] = 30.0
    labels = torch.tensor([3, 3])
    assert CumulativeMass(scope="sample", threshold=0.95)(student, student, labels).sum(dim=1).tolist() == [1, 10]
    assert CumulativeMass(scope="batch", threshold=0.97)(student, student, labels).sum(dim=1).tolist() == [10, 10]
    assert CumulativeMass(scope="batch", threshold=0.58)(student, student, labels).sum(dim=1).tolist() == [2, 2]


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_the_threshold_itself_suffices(scope: Any) -> None:
    """Four equal classes: 0.5 is reached by exactly two of them, not three."""
    student = torch.zeros(3, 4)
    mask = CumulativeMass(threshold=0.5, scope=scope)(student, student, torch.zeros(3, dtype=torch.int64))
    assert mask.sum(dim=1).tolist() == [2, 2, 2]


@pytest.mark.parametrize(("k_step", "size"), [(1, 5), (2, 5), (3, 7), (4, 5), (5, 6), (100, 10)])
def test_k_step_rounds_up_to_its_grid(k_step: int, size: int) -> None:
    student = torch.zeros(2, 10)
    mask = CumulativeMass(threshold=0.45, k_step=k_step)(student, student, torch.zeros(2, dtype=torch.int64))
    assert mask.sum(dim=1).tolist() == [size, size]


@pytest.mark.parametrize("scope", ["batch", "sample"])
def test_a_threshold_that_rounding_never_reaches_takes_every_class(scope: Any) -> None:
    student, teacher, labels = batch()
    assert CumulativeMass(threshold=1.0, scope=scope)(student, teacher, labels).sum(dim=1).min() >= NUM_CLASSES - 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("grouping", [TopK(k=6), CumulativeMass(), CumulativeMass(scope="sample")])
def test_types_of_logits(grouping: Any, dtype: torch.dtype) -> None:
    student, teacher, labels = batch()
    student = student.to(dtype)
    assert torch.equal(grouping(student, teacher.to(dtype), labels), grouping(student.double(), teacher, labels))


@pytest.mark.parametrize("grouping", [TopK(k=6), CumulativeMass(), CumulativeMass(scope="sample")])
def test_permuted_inputs_kept_and_no_graph(grouping: Any) -> None:
    student, teacher, labels = batch()
    student.requires_grad_()
    before = student.detach().clone()
    mask, order = grouping(student, teacher, labels), torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(grouping(student[order], teacher[order], labels[order]), mask[order])
    assert torch.equal(student.detach(), before)
    assert not mask.requires_grad


@pytest.mark.parametrize("grouping", [TopK(k=2), CumulativeMass(), CumulativeMass(scope="sample")])
def test_one_sample_of_two_classes(grouping: Any) -> None:
    student = torch.tensor([[1.0, 1.5]])
    assert marked(grouping(student, student, torch.tensor([0]))) == [{0, 1}]


def test_k_of_all_classes_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    grouping, given = TopK(k=NUM_CLASSES + 3), batch()
    with caplog.at_level(logging.WARNING):
        assert grouping(*given).all()
        grouping(*given)
    assert [record.getMessage() for record in caplog.records] == [
        "grouping.k is 20 and 17 classes are in play: Secondary is empty"
    ]


def test_no_warning_where_secondary_has_a_class(caplog: pytest.LogCaptureFixture) -> None:
    TopK(k=NUM_CLASSES - 1)(*batch())
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("top_k", {"k": 0}, "grouping.k must be a whole number of at least 1, got 0"),
        ("top_k", {"k": 2.5}, "got 2.5"),
        ("top_k", {"k": True}, "got True"),
        ("top_k", {"rank_by": "both"}, "grouping.rank_by must be one of student, teacher; got `both`"),
        ("cumulative_mass", {"threshold": 0.0}, r"grouping.threshold must lie in \(0, 1\], got 0.0"),
        ("cumulative_mass", {"threshold": 1.01}, "got 1.01"),
        ("cumulative_mass", {"threshold": math.nan}, "got nan"),
        ("cumulative_mass", {"temperature": 0.0}, "grouping.temperature must be a number above 0, got 0.0"),
        ("cumulative_mass", {"temperature": math.inf}, "got inf"),
        ("cumulative_mass", {"scope": "epoch"}, "grouping.scope must be one of batch, sample; got `epoch`"),
        ("cumulative_mass", {"rank_by": ""}, "grouping.rank_by must be one of"),
        ("cumulative_mass", {"k_step": 0}, "grouping.k_step must be a whole number"),
    ],
)
def test_values_out_of_range_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GROUPINGS[name](**options)


@pytest.mark.parametrize("name", GROUPINGS)
def test_inputs_that_do_not_fit_are_refused(name: str) -> None:
    student, teacher, labels = batch()
    with pytest.raises(ConfigError, match=r"student logits \(6, 17\) and teacher logits \(6, 16\)"):
        GROUPINGS[name]()(student, teacher[:, 1:], labels)
    with pytest.raises(DataError, match=r"\[0, 17\)"):
        GROUPINGS[name]()(student, teacher, labels + NUM_CLASSES)


def test_settings_are_shown() -> None:
    assert repr(TopK(k=3)) == "TopK(k=3, rank_by=student)"
    assert "threshold=0.93" in repr(CumulativeMass())
