"""A function through a compiler, or as it is where that fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from torch import nn

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


class Net(nn.Module):
    """Convolution, batch norm and dropout: weights, buffers and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Dropout(0.5), nn.Flatten())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layers(images)
        return outputs


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(count))


def step(function, network: Net, count: int):
    """Outputs, gradients and buffers, and the next random number."""
    network.zero_grad()
    torch.manual_seed(count)
    outputs = function(images(count))
    outputs.square().sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return outputs.detach(), gradients, [buffer.clone() for buffer in network.buffers()], torch.rand(1)


def test_the_rehearsal_of_a_trained_network_leaves_no_trace() -> None:
    ours, theirs = Net(), Net()
    noticed = []
    for parameter in ours.parameters():
        parameter.register_post_accumulate_grad_hook(noticed.append)
    function = CompiledFunction(ours, "the network", "x.compile", "aot_eager", trained=ours)
    for times, count in enumerate((4, 3, 4), 1):
        found, expected = step(function, ours, count), step(theirs, theirs, count)
        torch.testing.assert_close(found, expected)
        assert len(noticed) == times * len(list(ours.parameters()))
    assert function.is_compiled


def failing_way_back(graph, inputs):
    from torch._dynamo.backends.common import aot_autograd

    def backward(graph, inputs):
        raise RuntimeError("no way back")

    return aot_autograd(fw_compiler=lambda graph, inputs: graph.forward, bw_compiler=backward)(graph, inputs)


def test_a_way_back_that_cannot_be_compiled_is_told_before_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = Net(), Net()
    function = CompiledFunction(ours, "the network", "x.compile", failing_way_back, trained=ours)
    with caplog.at_level(logging.WARNING, "gkd.core.compiling"):
        for count in (4, 3):
            torch.testing.assert_close(step(function, ours, count), step(theirs, theirs, count), rtol=0, atol=0)
    assert not function.is_compiled
    (record,) = [record for record in caplog.records if record.name == "gkd.core.compiling"]
    assert "no way back" in record.message
