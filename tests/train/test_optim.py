"""Parameter groups, learning rates and clipping."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from gkd.core.errors import ConfigError
from gkd.train.optim import GroupRule, build_sgd, clip_gradients, param_groups, set_lr


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


def test_an_optimizer_that_is_told_does_the_scaling():
    """The same weights as after scaling the gradients first; the factor counts for one step."""
    found = []
    for is_told in (False, True):
        module = nn.Linear(3, 2)
        nn.init.ones_(module.weight)
        optimizer = build_sgd(module, lr=0.1)
        for step in range(3):
            for parameter in module.parameters():
                parameter.grad = torch.full_like(parameter, 4.0 + step)
            norm = clip_gradients(module.parameters(), 1.0, loss_scale=2.0, optimizer=optimizer if is_told else None)
            assert norm.item() == pytest.approx((4.0 + step) * 8**0.5 / 2)
            assert optimizer.gradient_factor == (pytest.approx(0.5 / norm.item()) if is_told else 1.0)
            optimizer.step()
            assert optimizer.gradient_factor == 1.0
        found.append(module.weight)
    torch.testing.assert_close(*found)


def test_clipping_never_enlarges():
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.tensor([0.5])
    clip_gradients([parameter], 1.0)
    assert parameter.grad.item() == 0.5


def test_set_lr_reaches_every_group():
    optimizer = build_sgd(network(), lr=0.1)
    set_lr(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


class Named(nn.Module):
    """Something with names as an objective has them."""

    def __init__(self):
        super().__init__()
        layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)) for _ in range(3)))
        self.backbone = nn.ModuleDict({"layers": layers, "features": nn.BatchNorm1d(2)})
        self.head = nn.Linear(2, 5, bias=False)


def described(objective, *rules, **settings):
    """Of each group the factor, the decay and the names of its parameters."""
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    groups = param_groups(objective, rules, weight_decay=0.5, **settings)
    return [(group["lr_factor"], group["weight_decay"], [names[id(p)] for p in group["params"]]) for group in groups]


def test_a_rule_without_effect_changes_no_group():
    wanted = described(Named())
    assert described(Named(), GroupRule("*")) == wanted
    assert [(factor, decay) for factor, decay, _ in wanted] == [(1.0, 0.5), (1.0, 0.0)]


def test_each_factor_has_its_own_groups_and_the_decay_of_its_parameters():
    found = described(Named(), GroupRule("backbone.layers.0.*", 0.1), GroupRule("head.*", 10.0))
    layers = "backbone.layers"
    assert found == [
        (0.1, 0.5, [f"{layers}.0.0.weight"]),
        (1.0, 0.5, [f"{layers}.1.0.weight", f"{layers}.2.0.weight"]),
        (10.0, 0.5, ["head.weight"]),
        (0.1, 0.0, [f"{layers}.0.0.bias", f"{layers}.0.1.weight", f"{layers}.0.1.bias"]),
        (
            1.0,
            0.0,
            [
                *(f"{layers}.{layer}.{name}" for layer in (1, 2) for name in ("0.bias", "1.weight", "1.bias")),
                "backbone.features.weight",
                "backbone.features.bias",
            ],
        ),
    ]


def test_everything_of_one_factor_decays_together_when_asked():
    found = described(Named(), GroupRule("head.*", 10.0), decay_norm_and_bias=True)
    assert sorted((factor, decay) for factor, decay, _ in found) == [(1.0, 0.5), (10.0, 0.5)]


def test_the_first_rule_that_matches_counts():
    rules = GroupRule("*.bias", 2.0), GroupRule("backbone.layers.?.0.*", 3.0)
    of = {name: factor for factor, _, names in described(Named(), *rules) for name in names}
    assert of["backbone.layers.1.0.bias"] == 2.0
    assert of["backbone.layers.1.0.weight"] == 3.0
    assert of["head.weight"] == 1.0


def test_letter_case_counts():
    with pytest.raises(ConfigError, match=r"'Head\.\*' matches no parameter"):
        described(Named(), GroupRule("Head.*"))


def test_what_is_frozen_needs_no_gradient_and_is_in_no_group():
    objective = Named()
    found = described(objective, GroupRule("backbone.layers.[01].*", frozen=True), GroupRule("backbone.*", 0.5))
    frozen = [name for name, parameter in objective.named_parameters() if not parameter.requires_grad]
    assert frozen == [name for name, _ in objective.named_parameters() if re.match(r"backbone\.layers\.[01]\.", name)]
    assert not {name for _, _, names in found for name in names} & set(frozen)
    assert sum(len(names) for _, _, names in found) + len(frozen) == len(list(objective.parameters()))


def test_what_the_network_itself_froze_stays_so():
    objective = Named()
    objective.backbone["features"].weight.requires_grad_(False)
    of = {name for _, _, names in described(objective, GroupRule("backbone.features.*", 0.1)) for name in names}
    assert "backbone.features.weight" not in of
    assert "backbone.features.bias" in of


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="every parameter is frozen, so there is nothing to train"):
        build_sgd(Named(), lr=0.1, groups=[GroupRule("*", frozen=True)])


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("backbone.layer.0.*", "near it are backbone.layers.0.*"),
        ("hed.*", "near it are head.*"),
        ("head.weigth", "near it are head.weight"),
        ("backbone.qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqq", "names begin with backbone.layers, backbone.features"),
        ("?", "names begin with backbone, head"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_is_near(pattern, hint):
    with pytest.raises(ConfigError) as caught:
        described(Named(), GroupRule(pattern))
    assert str(caught.value).startswith(f"optim.groups: {pattern!r} matches no parameter; {hint}")


def test_a_long_list_of_names_is_cut():
    module = nn.Module()
    for index in range(9):
        module.register_parameter(f"p{index}", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match=r"names begin with p0, p1, p2, p3, p4, p5 …$"):
        param_groups(module, [GroupRule("?")])


def test_a_rule_behind_a_wider_one_is_refused():
    with pytest.raises(ConfigError) as caught:
        described(Named(), GroupRule("backbone.*", 0.1), GroupRule("backbone.layers.0.*", frozen=True))
    assert str(caught.value) == (
        "optim.groups: all that 'backbone.layers.0.*' matches is matched by 'backbone.*' before it, and the first "
        "match counts; put the narrower pattern first"
    )


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_not_above_0_is_refused(factor):
    with pytest.raises(ConfigError, match=r"lr_factor of 'head.\*' must be above 0, got .*set frozen: true"):
        GroupRule("head.*", factor)


def test_a_factor_on_what_is_frozen_is_refused():
    with pytest.raises(ConfigError, match=r"'head.\*' is frozen, so its lr_factor 2.0 has no effect"):
        GroupRule("head.*", 2.0, frozen=True)


def test_an_empty_pattern_is_refused():
    with pytest.raises(ConfigError, match="match is empty"):
        GroupRule("")


def test_each_group_has_its_multiple_of_the_rate_from_the_start():
    optimizer = build_sgd(Named(), lr=0.2, groups=[GroupRule("head.*", 10.0)])
    assert {group["lr_factor"]: group["lr"] for group in optimizer.param_groups} == {1.0: 0.2, 10.0: 2.0}
    set_lr(optimizer, 0.05)
    assert {group["lr_factor"]: group["lr"] for group in optimizer.param_groups} == {1.0: 0.05, 10.0: 0.5}


def test_a_step_moves_each_parameter_by_its_factor():
    objective = Named()
    rules = [GroupRule("backbone.layers.0.*", frozen=True), GroupRule("head.*", 10.0)]
    optimizer = build_sgd(objective, lr=0.1, momentum=0.0, weight_decay=0.0, groups=rules)
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    for parameter in objective.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for name, parameter in objective.named_parameters():
        moved = 0.0 if ".layers.0." in name else 1.0 if name.startswith("head.") else 0.1
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, moved))


def test_clipping_passes_over_what_is_frozen():
    frozen, trained = torch.zeros(1), torch.zeros(1, requires_grad=True)
    trained.grad = torch.tensor([4.0])
    assert clip_gradients([frozen, trained], 1.0) == pytest.approx(4.0)
    assert trained.grad.item() == pytest.approx(1.0)
