"""SGD on rows: equal to torch's on the rows of a sparse gradient, and bit for bit nothing elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gkd.train.optim import build_sgd, clip_gradients
from gkd.train.row_sgd import RowSgd

# A width of whole vector registers: torch's kernels round the last few numbers of a tensor otherwise than the others.
CLASSES, DIM = 6, 32
SETTINGS = [
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"momentum": 0.9, "weight_decay": 0.01},
    {"momentum": 0.9, "dampening": 0.25},
    {"momentum": 0.9, "maximize": True, "weight_decay": 0.01},
    {"weight_decay": 0.01},
    {},
]


def parameter(seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(seed)))


def some_rows(rows: list[int], seed: int) -> torch.Tensor:
    return torch.randn(len(rows), DIM, generator=torch.Generator().manual_seed(seed))


def sparse(rows: list[int], values: torch.Tensor) -> torch.Tensor:
    return torch.sparse_coo_tensor(
        torch.tensor([rows], dtype=torch.int64), values, (CLASSES, DIM), check_invariants=True
    )


def momentum_of(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> torch.Tensor:
    return optimizer.state[weight].get("momentum_buffer", torch.zeros(0))


@pytest.mark.parametrize("settings", SETTINGS)
def test_with_every_row_it_is_torchs_sgd_to_the_last_bit(settings):
    ours, theirs = parameter(), parameter()
    optimizer, reference = RowSgd([ours], lr=0.1, **settings), torch.optim.SGD([theirs], lr=0.1, **settings)
    # Torch takes the first gradient for the momentum, undampened; a buffer of zeros is our rule.
    reference.state[theirs]["momentum_buffer"] = torch.zeros(CLASSES, DIM)
    for step in range(5):
        values = some_rows(list(range(CLASSES)), step + 1)
        ours.grad, theirs.grad = sparse([4, 1, 0, 5, 2, 3], values[[4, 1, 0, 5, 2, 3]]), values.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(ours, theirs)
        assert not settings.get("momentum") or torch.equal(momentum_of(optimizer, ours), momentum_of(reference, theirs))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("is_same_layout", [True, False])
def test_dense_gradients_of_any_layout_give_torchs_numbers(settings, is_same_layout):
    """Torch's fused kernel goes through memory place by place, whatever entry a place holds."""
    start = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ours = nn.Parameter(start.clone(memory_format=torch.channels_last))
    theirs = nn.Parameter(start.clone())
    optimizer = RowSgd([ours], lr=0.1, **settings)
    reference = torch.optim.SGD([theirs], lr=0.1, foreach=False, **settings)
    reference.state[theirs]["momentum_buffer"] = torch.zeros_like(start)
    for step in range(5):
        values = torch.randn(start.shape, generator=torch.Generator().manual_seed(step + 1))
        order = torch.channels_last if is_same_layout else torch.contiguous_format
        ours.grad, theirs.grad = values.clone(memory_format=order), values.clone()
        optimizer.step()
        reference.step()
        assert torch.equal(ours, theirs)
        assert not settings.get("momentum") or torch.equal(momentum_of(optimizer, ours), momentum_of(reference, theirs))


def test_a_parameter_with_gaps_keeps_what_lies_between():
    around = torch.ones(4, 6)
    weight = nn.Parameter(around[:, :3])
    optimizer = RowSgd([weight], lr=0.5)
    weight.grad = torch.empty_strided((4, 3), (6, 1)).fill_(1.0)
    optimizer.step()
    assert torch.equal(around, torch.tensor([0.5, 0.5, 0.5, 1.0, 1.0, 1.0]).expand(4, 6))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("factor", [0.3, 2.0**-16])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_a_factor_is_that_of_the_gradients(settings, factor, as_tensor):
    """On all three ways: torch's kernel, another layout, and rows."""
    dense, turned, rows = (parameter(seed) for seed in range(3))
    references = [parameter(seed) for seed in range(3)]
    optimizer = RowSgd([dense, turned, rows], lr=0.1, **settings)
    reference = torch.optim.SGD(references, lr=0.1, **settings)
    for each in references:
        reference.state[each]["momentum_buffer"] = torch.zeros_like(each)
    for step in range(3):
        values = some_rows(list(range(CLASSES)), step + 1)
        dense.grad, turned.grad, rows.grad = values.clone(), values.T.contiguous().T, sparse([*range(CLASSES)], values)
        for each in references:
            each.grad = values * factor
        optimizer.gradient_factor = torch.tensor(factor) if as_tensor else factor
        optimizer.step()
        reference.step()
    for ours, theirs in zip((dense, turned, rows), references, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not torch.equal(dense, parameter())
    assert not hasattr(optimizer, "grad_scale")


@pytest.mark.parametrize("settings", SETTINGS)
def test_each_row_has_its_own_history_and_the_others_keep_every_bit(settings):
    """The reference: an SGD of one row for each row, which takes a step only where the row has a gradient."""
    weight = parameter()
    weight.data[3, :4] = torch.tensor([float("nan"), float("inf"), -0.0, 1e-45])  # never touched, never read
    optimizer = RowSgd([weight], lr=0.1, **settings)
    singles = [nn.Parameter(row.clone()[None]) for row in weight.detach()]
    reference = [torch.optim.SGD([row], lr=0.1, **settings) for row in singles]
    for row, sgd in zip(singles, reference, strict=True):
        sgd.state[row]["momentum_buffer"] = torch.zeros(1, DIM)
    for step, rows in enumerate(([0, 2], [5], [2, 1, 0], [0, 5], [1])):
        values = some_rows(rows, step + 1)
        weight.grad = sparse(rows, values)
        before, kept = weight.detach().clone(), momentum_of(optimizer, weight).clone()
        optimizer.step()
        for row, gradient in zip(rows, values, strict=True):
            singles[row].grad = gradient[None].clone()
            reference[row].step()
        others = [row for row in range(CLASSES) if row not in rows]
        assert raw(weight[others]) == raw(before[others])
        assert not kept.numel() or raw(momentum_of(optimizer, weight)[others]) == raw(kept[others])
    assert raw(weight) == raw(torch.cat(singles))
    if settings.get("momentum"):
        wanted = torch.cat([momentum_of(sgd, row) for row, sgd in zip(singles, reference, strict=True)])
        assert torch.equal(momentum_of(optimizer, weight), wanted)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


def test_a_dense_gradient_of_zero_would_decay_the_other_rows():
    ours, theirs = parameter(), parameter()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer, reference = RowSgd([ours], **settings), torch.optim.SGD([theirs], **settings)
    for rows in ([0, 1], [1]):
        values = some_rows(rows, 7)
        ours.grad, theirs.grad = sparse(rows, values), sparse(rows, values).to_dense()
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours[1], theirs[1])
    assert torch.equal(ours[2:], parameter()[2:])
    assert not (ours[[0, 2, 3, 4, 5]] == theirs[[0, 2, 3, 4, 5]]).any()
    assert not (momentum_of(optimizer, ours)[0] == momentum_of(reference, theirs)[0]).any()


def test_micro_batches_that_share_rows_add_up():
    weight, reference = parameter(), parameter()
    optimizer = build_module_sgd(weight)
    for labels in ([0, 2, 2], [2, 5]):
        F.embedding(torch.tensor(labels), weight, sparse=True).square().sum().backward()
    assert weight.grad is not None
    assert not weight.grad.is_coalesced()
    wanted = torch.zeros(CLASSES, DIM)
    for label in (0, 2, 2, 2, 5):
        wanted[label] += 2 * reference.detach()[label]
    norm = clip_gradients([weight], 1.0)
    torch.testing.assert_close(norm, wanted.norm())
    assert weight.grad.is_coalesced()
    torch.testing.assert_close(weight.grad.to_dense(), wanted / wanted.norm())
    optimizer.step()
    touched = wanted / wanted.norm()
    torch.testing.assert_close(weight.detach()[[0, 2, 5]], (reference - 0.1 * 1.9 * touched).detach()[[0, 2, 5]])
    assert torch.equal(weight[[1, 3, 4]], reference[[1, 3, 4]])
    assert weight.grad.is_sparse  # still there for who looks at it


def build_module_sgd(weight: nn.Parameter) -> RowSgd:
    module = nn.Module()
    module.weight = weight
    optimizer = build_sgd(module, lr=0.1, weight_decay=0.0)
    assert type(optimizer) is RowSgd
    return optimizer


def test_clipping_without_a_limit_still_counts_each_row_once():
    weight = parameter()
    weight.grad = sparse([1, 1], torch.ones(2, DIM))
    torch.testing.assert_close(clip_gradients([weight], None), torch.tensor(2.0 * DIM**0.5))
    assert torch.equal(weight.grad.to_dense()[1], torch.full((DIM,), 2.0))


def test_dense_and_sparse_parameters_of_one_group_each_take_their_way():
    head, layer, idle = parameter(), parameter(1), parameter(2)
    alone, reference = parameter(1), parameter(2)
    optimizer = RowSgd([head, layer, idle], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    dense = torch.optim.SGD([alone], lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    for step in range(3):
        gradient = some_rows(list(range(CLASSES)), step)
        head.grad, layer.grad, alone.grad = sparse([1], gradient[:1]), gradient.clone(), gradient.clone()
        optimizer.step()
        dense.step()
    assert torch.equal(layer, alone)
    assert torch.equal(idle, reference)
    assert torch.equal(head[2:], parameter()[2:])
    assert not torch.equal(head[1], parameter()[1])


def test_a_parameter_may_change_from_sparse_to_dense_gradients_and_back():
    weight, reference = parameter(), parameter()
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    optimizer, dense = RowSgd([weight], **settings), torch.optim.SGD([reference], **settings)
    every = list(range(CLASSES))
    for step in range(4):
        gradient = some_rows(every, step)
        weight.grad = sparse(every, gradient) if step % 2 == 0 else gradient.clone()
        reference.grad = gradient.clone()
        optimizer.step()
        dense.step()
    assert torch.equal(weight, reference)


def test_a_gradient_without_rows_changes_nothing():
    weight = parameter()
    optimizer = RowSgd([weight], lr=0.1, momentum=0.9, weight_decay=0.01)
    weight.grad = sparse([], torch.zeros(0, DIM))
    optimizer.step()
    assert torch.equal(weight, parameter())
    assert clip_gradients([weight], 1.0) == 0.0


def test_a_closure_gives_the_gradients_and_the_loss():
    weight, reference = parameter(), parameter()
    optimizer, dense = RowSgd([weight], lr=0.1), torch.optim.SGD([reference], lr=0.1)

    def loss(of: nn.Parameter, **options: bool) -> torch.Tensor:
        value = F.embedding(torch.tensor([1, 3]), of, **options).square().sum()
        value.backward()
        return value

    assert optimizer.step(lambda: loss(weight, sparse=True)) == dense.step(lambda: loss(reference))
    assert torch.equal(weight, reference)


def test_its_momentum_is_part_of_the_state_and_comes_back():
    weight = parameter()
    optimizer = RowSgd([weight], lr=0.1, momentum=0.9)
    weight.grad = sparse([2], some_rows([2], 1))
    optimizer.step()
    other = RowSgd([parameter()], lr=0.1, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    kept = momentum_of(other, other.param_groups[0]["params"][0])
    assert kept.shape == (CLASSES, DIM)
    assert kept.layout == torch.strided
    assert torch.equal(kept, momentum_of(optimizer, weight))
