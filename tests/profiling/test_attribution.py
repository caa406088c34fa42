"""Traces, made by hand and by the profiler, to phases."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile, record_function

from gkd.core.errors import DataError
from gkd.profiling.attribution import IDLE, attribute
from gkd.profiling.trace import Event, read_trace

MAIN, ENGINE, GLOO, STREAM = "1/1", "1/2", "1/3", "0/7"
NODE = "autograd::engine::evaluate_function: X"


def mark(name: str, start: float, end: float, thread: str = MAIN) -> Event:
    return Event("user_annotation", name, thread, start, end)


def op(name: str, start: float, end: float, number: int | None = None, thread: str = MAIN) -> Event:
    return Event("cpu_op", name, thread, start, end, number)


def in_order(*events: Event) -> list[Event]:
    return sorted(events, key=lambda event: (event.start, -event.end))


def phases(events: list[Event]) -> dict[str, float]:
    found: dict[str, float] = {}
    for (_, phase), value in attribute(events).host.items():
        found[phase] = found.get(phase, 0.0) + value
    return found


def a_step(thread: str = MAIN) -> list[Event]:
    """Student 10 to 20, head 20 to 30, backward 40 to 80 on `thread`, in a step of 0 to 100."""
    return [
        mark("gkd/step", 0, 100),
        mark("gkd/head", 10, 30),
        mark("gkd/student", 10, 20),
        op("to", 11, 12, 1),  # makes no node: the next does
        op("conv", 12, 18, 1),
        op("linear", 20, 28, 2),
        mark("gkd/backward", 40, 80),
        op(NODE, 42, 50, 2, thread),
        op(NODE, 50, 52, None, thread),  # stores a gradient
        op("mm", 43, 49, 2, thread),
        op(NODE, 55, 75, 1, thread),
    ]


def test_scopes_and_the_way_back_get_their_phases():
    assert phases(in_order(*a_step())) == {
        "rest": 10 + 10 + 20,
        "student_forward": 10,
        "head_forward": 10,
        "head_backward": 15,  # from the start of the way back to the next node
        "student_backward": 25,
    }


def test_the_way_back_may_run_on_a_thread_of_its_own():
    assert phases(in_order(*a_step(ENGINE))) == phases(in_order(*a_step()))


def test_the_last_operation_with_a_number_made_the_node():
    """An augmentation outside of the student peeks at the number that the student's first node gets."""
    found = phases(in_order(*a_step(), mark("gkd/augment", 2, 6), op("flip", 3, 4, 1)))
    assert (found["augment"], found["student_backward"]) == (4, 25)


def test_what_a_node_calls_does_not_count_as_the_way_forward():
    """It bears the node's number, and lies in the scope `backward`."""
    found = phases(in_order(*a_step(), mark("gkd/distill", 60, 61)))
    assert found["student_backward"] == 24


def test_a_node_of_unknown_number_belongs_to_the_one_before():
    found = phases(in_order(*a_step(), op(NODE, 76, 79, 999)))
    assert found["student_backward"] == 25


def test_time_outside_of_steps_does_not_count():
    events = in_order(*a_step(), mark("gkd/data", -50, -10), mark("gkd/data", 98, 140), mark("gkd/step", 200, 210))
    found = attribute(events)
    assert (found.num_steps, found.wall) == (2, 110)
    assert sum(found.host.values()) == 110
    assert found.host["data", "data"] == 2


def test_collectives_and_waiting_for_them_are_communication():
    events = in_order(
        *a_step(),
        op("c10d::allreduce_", 30, 32),
        mark("gloo:all_reduce", 34, 38, GLOO),  # the thread waits
        mark("gloo:all_reduce", 56, 90, GLOO),  # beside the way back until that ends at 75, then it is waited for
    )
    found = phases(events)
    assert found["communication"] == 2 + 4 + (90 - 75)
    assert found["student_backward"] == 20


def test_kernels_belong_to_the_phase_that_launched_them():
    events = in_order(
        *a_step(),
        Event("cuda_runtime", "cudaLaunchKernel", MAIN, 13, 14, correlation=5),
        Event("cuda_runtime", "cudaLaunchKernel", MAIN, 21, 22, correlation=6),
        Event("cuda_runtime", "cudaLaunchKernel", ENGINE, 60, 61, correlation=7),
        Event("cuda_runtime", "cudaMemcpyAsync", MAIN, 1, 2, correlation=8),
        Event("kernel", "conv", STREAM, 20, 35, correlation=5),
        Event("kernel", "gemm", STREAM, 35, 45, correlation=6),
        Event("kernel", "conv_back", STREAM, 62, 90, correlation=7),
        Event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", "0/8", 3, 7, correlation=8),
        Event("kernel", "ncclDevKernel_AllReduce", "0/9", 92, 97, correlation=99),
    )
    found = attribute(events)
    busy: dict[str, float] = {}
    for (phase, _), value in found.device.items():
        busy[phase] = busy.get(phase, 0.0) + value
    assert busy == {
        "student_forward": 15,
        "head_forward": 10,
        "student_backward": 28,
        "copy": 4,
        "communication": 5,
        IDLE: 38,
    }
    assert sum(busy.values()) == found.wall
    assert found.kernels["student_backward"] == 28
    assert [one.name for one in found.operators] == ["conv_back", "conv", "gemm", "ncclDevKernel_AllReduce"]


def test_operators_are_counted_without_what_they_call():
    events = in_order(mark("gkd/step", 0, 100), op("linear", 0, 30), op("mm", 5, 25), op("mm", 40, 45))
    assert [(one.name, one.num_calls, one.microseconds) for one in attribute(events).operators] == [
        ("mm", 2, 25),
        ("linear", 1, 10),
    ]


def test_a_trace_without_steps_is_refused():
    with pytest.raises(DataError, match="holds no step"):
        attribute([op("mm", 0, 1)])


@pytest.mark.parametrize(
    "content", [b"", b"not gzip", gzip.compress(b"{}"), gzip.compress(b"[1]"), gzip.compress(b"{")]
)
def test_a_file_that_is_no_trace_is_refused(tmp_path, content):
    (tmp_path / "trace.json.gz").write_bytes(content)
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "trace.json.gz"))):
        read_trace(tmp_path / "trace.json.gz")


class Square(torch.autograd.Function):
    """A function with a way back of its own."""

    @staticmethod
    def forward(ctx, values):
        ctx.save_for_backward(values)
        return values * values

    @staticmethod
    def backward(ctx, grad):
        (values,) = ctx.saved_tensors
        return 2 * values * grad


def traced_steps(path: Path, is_recomputing: bool = False) -> None:
    """Two steps with a large student and a small head, traced."""
    student = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.PReLU(512), torch.nn.Linear(512, 512))
    head = torch.nn.Linear(512, 8)
    images, labels = torch.randn(256, 256), torch.randint(0, 8, (256,))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(2):
            with record_function("gkd/step"):
                with record_function("gkd/student"):
                    if is_recomputing:
                        embeddings = torch.utils.checkpoint.checkpoint(student, images, use_reentrant=False)
                    else:
                        embeddings = student(images)
                with record_function("gkd/head"):
                    loss = F.cross_entropy(head(embeddings), labels)
                with record_function("gkd/distill"):
                    loss = loss + Square.apply(embeddings).mean()
                with record_function("gkd/backward"):
                    loss.backward()
    profiler.export_chrome_trace(str(path))


@pytest.mark.parametrize("is_recomputing", [False, True])
def test_the_profilers_own_trace_tells_the_way_back_apart(tmp_path, is_recomputing):
    traced_steps(tmp_path / "trace.json.gz", is_recomputing)
    events = read_trace(tmp_path / "trace.json.gz")
    found = attribute(events)
    assert found.num_steps == 2
    assert sum(found.host.values()) == pytest.approx(found.wall)
    on_the_way_back = {phase for (scope, phase) in found.host if scope == "backward"}
    assert on_the_way_back == {"student_backward", "head_backward", "distill_backward"}
    # The nodes by their kinds, which are known here: an independent way to the same sums, but for the gaps.
    named = {"student_backward": 0.0, "head_backward": 0.0, "distill_backward": 0.0}
    for event in events:
        kind = event.name.partition("evaluate_function: ")[2]
        if kind in ("PreluKernelBackward0",):
            named["student_backward"] += event.end - event.start
        elif kind in ("NllLossBackward0", "LogSoftmaxBackward0"):
            named["head_backward"] += event.end - event.start
        elif kind == "SquareBackward":
            named["distill_backward"] += event.end - event.start
    for phase, least in named.items():
        assert least > 0
        assert found.host["backward", phase] >= least
