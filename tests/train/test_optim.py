"""Parameter groups, clipping and frozen batch norms."""

import pytest
import torch
from torch import nn

from gkd.train.optim import build_sgd, clip_gradients, freeze_batch_norm, set_lr


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(4, 2))


def test_weight_decay_spares_norms_biases_and_slopes():
    module = network()
    decayed, spared = build_sgd(module, lr=0.1, weight_decay=0.5).param_groups
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[4].weight)}
    assert decayed["weight_decay"] == 0.5
    assert spared["weight_decay"] == 0.0
    assert len(spared["params"]) == len(list(module.parameters())) - 2


def test_everything_decays_when_asked():
    groups = build_sgd(network(), lr=0.1, weight_decay=0.5, decay_norm_and_bias=True).param_groups
    assert len(groups) == 1
    assert groups[0]["weight_decay"] == 0.5


def test_frozen_parameters_are_left_out():
    module = network()
    module[0].weight.requires_grad_(False)
    groups = build_sgd(module, lr=0.1).param_groups
    assert all(p is not module[0].weight for group in groups for p in group["params"])


def test_a_step_equals_nesterov_written_out():
    weight = torch.tensor([[1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    module = nn.Module()
    module.weight = nn.Parameter(weight.detach().clone())
    optimizer = build_sgd(module, lr=0.1, momentum=0.9, weight_decay=0.01)
    expected, buffer = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(4):
        module.weight.grad = module.weight.detach() ** 3
        gradient = expected**3 + 0.01 * expected
        buffer = 0.9 * buffer + gradient
        expected = expected - 0.1 * (gradient + 0.9 * buffer)
        optimizer.step()
    torch.testing.assert_close(module.weight.detach(), expected)


def test_clipping_uses_the_norm_over_all_parameters():
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True), torch.zeros(1)]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([4.0])
    assert clip_gradients(parameters, None) == pytest.approx(5.0)
    assert parameters[0].grad.tolist() == [3.0, 0.0]
    assert clip_gradients(parameters, 1.0) == pytest.approx(5.0)
    torch.testing.assert_close(parameters[0].grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(parameters[1].grad, torch.tensor([0.8]))


def test_clipping_never_enlarges():
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.tensor([0.5])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.item() == 0.5


def test_set_lr_reaches_every_group():
    optimizer = build_sgd(network(), lr=0.1)
    set_lr(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_frozen_batch_norm_keeps_its_statistics():
    module = network().train()
    freeze_batch_norm(module)
    module(torch.randn(8, 3, 3, 3))
    assert module[1].running_mean.abs().sum() == 0
    assert module[2].training
