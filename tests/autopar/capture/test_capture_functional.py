"""In-place operators, views and no_grad regions mean in the graph what they mean in the module."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autopar.capture import capture, interpret
from autopar.errors import CaptureError

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """Runs a function of a linear layer's output and the input."""

    def __init__(self, function: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 6)
        self.register_buffer("counts", torch.zeros(6))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x), x, self)


def chained(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    return (h.mul_(2).add_(x, alpha=3).sub_(1) * h).sum()


def rows_and_columns(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    h = h * 1
    h[:, 0] = 5
    h[:, 1:3] += x[:, 1:3]
    h[0] = x[1]
    h[1, 2] *= 4
    return h.pow(2).sum()


def through_views(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    h.view(2, 2, 6)[1].fill_(3.0)
    h.t()[2].add_(1)
    h.unflatten(1, (2, 3)).permute(2, 0, 1)[0].mul_(2)
    h.unsqueeze(0).squeeze(0).diagonal().add_(7)
    return h.pow(2).sum()


def views_see_writes(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    first, flat = h[0], h.view(-1)
    h.add_(1)
    first.mul_(3)
    return (first * flat[:6]).sum() + h.pow(3).sum()


def indexed(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    made = torch.zeros_like(x)
    made.masked_fill_(x > 0, 2.0)
    made[[0, 1], [2, 3]] = h[0, 0]
    made.index_add_(0, torch.tensor([0, 2]), h[:2])
    made.clamp_(max=3).relu_()
    return made.pow(2).sum()


def keeps_dtype(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    low = x.to(torch.bfloat16)
    low.add_(h)
    whole = torch.zeros(6, dtype=torch.int64)
    whole += torch.arange(6)
    made = torch.zeros(4, 6)
    made.copy_(whole)
    return (low.float() * made).sum()


def without_gradient(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    with torch.no_grad():
        scale = h.abs().amax(dim=0)
        scale.add_(1)
        with torch.enable_grad():
            through = h * 2
    return (h / scale).sum() + through.sum() + h.detach().mul(x).mul(h).sum()


def into_buffer(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    with torch.no_grad():
        m.counts.add_(h.sum(0))
    return (h * m.counts).sum()


GOOD = [
    chained,
    rows_and_columns,
    through_views,
    views_see_writes,
    indexed,
    keeps_dtype,
    without_gradient,
    into_buffer,
]


@pytest.mark.parametrize("function", GOOD)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_writes_mean_what_they_mean(function: Callable[..., Tensor], device: str) -> None:
    module = Wrapped(function)
    twin = copy.deepcopy(module)
    graph = capture(copy.deepcopy(module).to(device), (X,))
    loss = module(X.clone())
    loss.backward()
    (again,) = interpret(graph, twin, (X.clone(),))
    again.backward()
    assert torch.equal(loss, again)
    assert torch.equal(module.linear.weight.grad, twin.linear.weight.grad)
    assert torch.equal(module.counts, twin.counts)


@pytest.mark.parametrize("function", [each for each in GOOD if each is not into_buffer])
def test_no_operator_writes(function: Callable[..., Tensor]) -> None:
    graph = capture(Wrapped(function), (X,))
    names = [each.target.split(".")[1] for kind in graph.types for each in kind.operators]
    assert [name for name in names if name.endswith("_") and not name.endswith("__")] == []


def writes_input(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    return h.sum() + x.add_(1).sum()


def writes_parameter(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    with torch.no_grad():
        m.linear.bias.add_(1)
    return h.sum() + m.linear(x).sum()


def writes_what_was_detached(h: Tensor, x: Tensor, m: nn.Module) -> Tensor:
    h = h * 1
    h.detach().add_(1)
    return h.sum()


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (writes_input, "writes to an input"),
        (writes_parameter, "writes to a parameter"),
        (writes_what_was_detached, "shares with another tensor"),
    ],
)
def test_writes_that_others_would_see_are_refused(function: Callable[..., Tensor], words: str) -> None:
    with pytest.raises(CaptureError, match=words) as caught:
        capture(Wrapped(function), (X,))
    assert "test_capture_functional.py:" in str(caught.value)
