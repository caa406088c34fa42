"""What the clock and the trace say, put together, and told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gkd.profiling.advice import advise
from gkd.profiling.attribution import IDLE, Attribution, Operator
from gkd.profiling.measuring import Measured
from gkd.profiling.profile import Profile, make_profile, spread
from gkd.profiling.report import report
from tests.profiling.test_advice import PLAIN

CPU = replace(PLAIN, device="cpu", device_name="", teacher="none")


def measured(**changes: object) -> Measured:
    """Two steps of 2 and 4 seconds."""
    values = {
        "step_seconds": [2.0, 4.0],
        "scope_seconds": {"": 0.5, "data": 0.3, "student": 2.2, "backward": 3.0},
        "profiled_seconds": 12.0,
        "num_page_faults": 0,
    }
    return Measured(**{**values, **changes})


HOST = {
    ("", "rest"): 3e6,  # the profiler slows what is made of small pieces
    ("", "communication"): 1e6,
    ("data", "data"): 0.3e6,
    ("student", "student_forward"): 2.7e6,
    ("backward", "student_backward"): 4e6,
    ("backward", "head_backward"): 1e6,
}


def on_cpu(**changes: object) -> Profile:
    return make_profile(measured(**changes), Attribution(2, 12e6, HOST, operators=(Operator("mm", 4, 5e6),)))


def test_on_a_cpu_the_clock_gives_the_times_and_the_trace_divides_them():
    found = on_cpu()
    assert found.seconds == pytest.approx(
        {
            "data": 0.15,
            "student_forward": 1.1,
            "student_backward": 1.2,
            "head_backward": 0.3,
            "communication": 0.0625,
            "rest": 0.1875,
        }
    )
    assert sum(found.seconds.values()) == pytest.approx(found.step_seconds) == 3.0
    assert (found.median_seconds, found.slowest_seconds, found.profiled_seconds) == (3.0, 4.0, 6.0)
    assert found.own_overhead == pytest.approx(0.25 / 3)
    assert found.bound() == "student"


def test_a_scope_that_the_trace_does_not_show_keeps_its_time():
    found = on_cpu(scope_seconds={"clip": 6.0})
    assert found.seconds == {"clip": 3.0}


def on_gpu(step_seconds: float) -> Profile:
    device = {
        ("student_forward", "student_forward"): 2e6,
        ("copy", "data"): 1e6,
        (IDLE, "data"): 1e6,
        (IDLE, "student_forward"): 2e6,
        (IDLE, "rest"): 1e6,
    }
    kernels = {"student_forward": 2e6, "copy": 1e6}
    return make_profile(measured(step_seconds=[step_seconds] * 2), Attribution(2, 7e6, {}, device, kernels))


def test_on_a_gpu_kernels_keep_their_time_and_the_rest_of_a_step_is_idle():
    found = on_gpu(3.0)
    assert found.seconds == pytest.approx({"student_forward": 1.0, "copy": 0.5, "data": 0.375, "launch": 1.125})
    assert found.kernel_seconds == pytest.approx({"student_forward": 1.0, "copy": 0.5})


def test_kernels_that_took_longer_under_the_profiler_are_brought_down_to_the_step():
    found = on_gpu(1.2)
    assert found.seconds == pytest.approx({"student_forward": 0.8, "copy": 0.4})


def test_the_report_tells_times_shares_bound_and_advice():
    own = on_cpu()
    text = report([own], CPU, advise(own.seconds, CPU))
    assert "3000.00 ms, 170.7 images/s" in text
    assert "median 3000.00 ms, slowest 4000.00 ms; under the profiler 6000.00 ms (2.00 times as long)" in text
    rows = {line[:28].strip(): line[28:].split() for line in text.splitlines()}
    assert rows["student, backward"] == ["1200.00", "40.0", "%"]
    assert rows["all"] == ["3000.00", "100.0", "%"]
    assert rows["own overhead"][:3] == ["250.00", "8.3", "%"]
    assert "teacher" not in rows
    assert "bound by: student, 76.7 % of the step" in text
    assert "student (76.7 % of the step; without it at most 4.29 times as fast)" in text
    assert "2500.00 ms      2.0 calls  mm" in text
    assert "rank" not in text.split("bound by")[1]


def test_kernels_have_a_column_of_their_own():
    text = report([on_gpu(3.0)], PLAIN, [])
    assert "a GPU: 3000.00 ms" in text
    row = next(line for line in text.splitlines() if line.startswith("student, forward"))
    assert row.split()[2:] == ["1000.00", "33.3", "%", "1000.00"]
    assert "nothing to advise" in text


def test_memory_that_comes_anew_is_told_on_a_cpu():
    own = on_cpu(num_page_faults=2 * (100 << 20) // 4096)
    assert "memory: 100 MiB a step came anew" in report([own], CPU, [])
    assert "MALLOC_TRIM_THRESHOLD_=" in report([own], CPU, [])
    for silent in (PLAIN, replace(CPU, keeps_memory=True)):
        assert "memory:" not in report([own], silent, [])
    assert "memory:" not in report([on_cpu(num_page_faults=10)], CPU, [])


def test_ranks_are_compared_without_what_they_wait_for_each_other():
    fast = replace(on_cpu(), seconds={"student_forward": 1.0, "communication": 2.0})
    slow = replace(on_cpu(), seconds={"student_forward": 2.5, "communication": 0.5})
    text = report([fast, slow], CPU, [])
    assert "differs by 150.0 %: the others wait for rank 1" in text
    assert "wait for" not in report([fast, fast], CPU, [])
    assert spread([2.0, 3.0, 2.5]) == pytest.approx(0.5)


def test_the_file_holds_the_shares():
    plain = on_cpu().to_json()
    assert sum(plain["shares"].values()) == pytest.approx(1)
    assert plain["bound"] == "student"
    assert plain["operators"] == ({"name": "mm", "num_calls": 4, "microseconds": 5e6},)
