"""A function through a compiler, or as it is where that fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from gkd.core.compiling import CompiledFunction


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def double(inputs: torch.Tensor) -> torch.Tensor:
    return 2 * inputs


def test_one_graph_a_size(caplog: pytest.LogCaptureFixture) -> None:
    sizes = []

    def compiler(graph, inputs):
        sizes.append(tuple(inputs[0].shape))
        return graph.forward

    function = CompiledFunction(double, "the network", "x.compile", compiler)
    for size in (3, 2, 3, 2):
        assert torch.equal(function(torch.ones(size)), torch.full((size,), 2.0))
    assert sizes == [(3,), (2,)]
    assert function.is_compiled
    assert not caplog.records


def test_a_failure_is_told_once_and_the_function_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    def compiler(graph, inputs):
        raise RuntimeError("no compiler here")

    function = CompiledFunction(double, "the network", "x.compile", compiler)
    with caplog.at_level(logging.WARNING, "gkd.core.compiling"):
        for _ in range(3):
            assert torch.equal(function(torch.ones(2)), torch.full((2,), 2.0))
    assert not function.is_compiled
    (record,) = caplog.records
    assert "the network cannot be compiled (" in record.message
    assert "Set x.compile=false" in record.message


def test_the_functions_own_error_comes_through() -> None:
    def broken(inputs: torch.Tensor) -> torch.Tensor:
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        CompiledFunction(broken, "the network", "x.compile", "eager")(torch.ones(1))
