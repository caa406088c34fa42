"""The line that a run prints: whole, short enough, and right where figures are missing."""

from __future__ import annotations

import pytest

from gkd.train.progress_line import format_seconds, progress_line

FIGURES = {
    "epoch": 10.5727,
    "loss/total": 12.3451,
    "loss/classification": 10.1234,
    "loss/gkd/primary": 0.34561,
    "loss/gkd/binary": 0.012345,
    "loss/gkd/weighted": 2.5,
    "optim/lr": 0.0212345,
    "time/images_per_second": 11084.4,
    "time/data_share": 0.012,
    "time/teacher_share": 0.204,
    "time/student_share": 0.746,
    "time/step_seconds": 0.4,
    "memory/allocated_gib": 14.23,
    "memory/peak_gib": 20.11,
}
WITHOUT_STAMP = 160 - len("12:34:56 ")


def without(*names):
    return {name: value for name, value in FIGURES.items() if name not in names}


def test_a_full_line_fits_160_columns_with_its_time():
    line = progress_line(120_000, 227_000, FIGURES)
    assert line == (
        "step 120000 ep 10.6/20  loss 12.3 (ce 10.1 binary 0.0123 primary 0.346)  lr 0.0212 11084 img/s  "
        "data 1 teacher 20 student 75%  14.2/20.1G  ETA 11:53:20"
    )
    assert len(line) <= WITHOUT_STAMP


def test_the_line_of_an_undistilled_run_on_a_cpu():
    figures = without(*(name for name in FIGURES if "gkd" in name or name.startswith("memory")), "time/teacher_share")
    line = progress_line(30, 60, figures | {"epoch": 1.0, "memory/resident_gib": 1.26})
    assert line == (
        "step 30 ep 1.0/2  loss 12.3 (ce 10.1)  lr 0.0212 11084 img/s  data 1 student 75%  1.3G  ETA 0:00:12"
    )


def test_parts_of_several_terms_are_told_apart():
    line = progress_line(1, 2, FIGURES | {"loss/kd/kl": 0.5})
    assert "(ce 10.1 gkd/binary 0.0123 gkd/primary 0.346 kd/kl 0.5)" in line


def test_nothing_is_made_up_where_figures_are_missing():
    figures = without("memory/allocated_gib", "memory/peak_gib", "loss/total", "loss/classification")
    line = progress_line(1, 2, figures)
    assert "  no loss  " in line
    assert "G  ETA" not in line


@pytest.mark.parametrize(("value", "text"), [(123456.7, "123457"), (0.0, "0"), (float("nan"), "nan"), (1e-7, "1e-07")])
def test_any_loss_stays_short(value, text):
    assert f"loss {text} (" in progress_line(1, 2, FIGURES | {"loss/total": value})


def test_seconds_read_as_a_clock():
    assert format_seconds(3723.4) == "1:02:03"
