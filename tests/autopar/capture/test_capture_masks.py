"""Constant masks are recognised by what they hide, whatever made them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.capture import capture, masks
from autopar.capture.graph import Graph, Ref
from tests.autopar.capture.sample_models import CASES

Q = torch.zeros(2, 4, 6, 8)


class Attention(nn.Module):
    """Attention under a mask that a function makes from the query."""

    def __init__(self, make_mask: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make_mask = make_mask
        self.weight = nn.Parameter(torch.ones(8))

    def forward(self, q: Tensor, given: Tensor | None = None) -> Tensor:
        mask = self.make_mask(q) if given is None else given
        return F.scaled_dot_product_attention(q * self.weight, q, q, attn_mask=mask).sum()


def attention_of(graph: Graph) -> tuple[bool, bool]:
    """Whether the (only kind of) attention call has a mask, and whether it is causal."""
    found = {
        (isinstance(each.arguments[3], Ref), len(each.arguments) > 5 and each.arguments[5] is True)
        for kind in graph.types
        for each in kind.operators
        if each.target == "aten.scaled_dot_product_attention.default"
    }
    return found.pop()


def lower(q: Tensor) -> Tensor:
    return torch.ones(6, 6, dtype=torch.bool, device=q.device).tril()


def additive(q: Tensor) -> Tensor:
    return torch.full((6, 6), float("-inf"), device=q.device).triu(1)[None, None]


def smallest(q: Tensor) -> Tensor:
    return torch.zeros(6, 6, device=q.device).masked_fill(~lower(q), torch.finfo(q.dtype).min)


def compared(q: Tensor) -> Tensor:
    place = torch.arange(6, device=q.device)
    return (place[:, None] >= place)[None, None].expand(2, 1, 6, 6)


def written(q: Tensor) -> Tensor:
    mask = torch.zeros(2, 4, 6, 6, dtype=torch.bool, device=q.device)
    for row in range(6):
        mask[:, :, row, : row + 1] = True
    return mask


@pytest.mark.parametrize("make", [lower, additive, smallest, compared, written])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_causal_masks_become_is_causal(make: Callable[[Tensor], Tensor], device: str) -> None:
    graph = capture(Attention(make).to(device), (Q,))
    assert attention_of(graph) == (False, True)
    assert len(graph.notes) == 1
    assert sum(len(kind.operators) for kind in graph.types) == 3


def test_masks_that_hide_nothing_are_dropped() -> None:
    assert attention_of(capture(Attention(lambda q: torch.zeros(6, 6)), (Q,))) == (False, False)


def nearly(q: Tensor) -> Tensor:
    mask = lower(q)
    mask[5, 0] = False
    return mask


def shifted(q: Tensor) -> Tensor:
    return torch.ones(6, 6, dtype=torch.bool).tril(1)


def weighing(q: Tensor) -> Tensor:
    place = torch.arange(6)
    return (place - place[:, None]).float()


def different_for_each_sample(q: Tensor) -> Tensor:
    mask = lower(q).expand(2, 1, 6, 6).clone()
    mask[1] = True
    return mask


def random(q: Tensor) -> Tensor:
    return torch.rand(6, 6) > -1


def from_data(q: Tensor) -> Tensor:
    return (q[:, :, :, :6] >= 0) & lower(q)


@pytest.mark.parametrize("make", [nearly, shifted, weighing, different_for_each_sample, random, from_data])
def test_other_masks_stay(make: Callable[[Tensor], Tensor]) -> None:
    graph = capture(Attention(make), (Q,))
    assert attention_of(graph) == (True, False)
    assert graph.notes == ()


def test_a_mask_that_the_caller_gives_stays() -> None:
    assert attention_of(capture(Attention(lower), (Q, lower(Q)))) == (True, False)


def test_the_shape_of_an_input_is_not_its_data() -> None:
    def shaped(q: Tensor) -> Tensor:
        return torch.ones_like(q[0, 0, :, :6]).tril() == 1

    assert attention_of(capture(Attention(shaped), (Q,))) == (False, True)


def test_rectangular_masks_follow_the_kernel() -> None:
    class Cross(nn.Module):
        def forward(self, q: Tensor, k: Tensor) -> Tensor:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            return F.scaled_dot_product_attention(q, k, k, attn_mask=mask).sum()

    assert attention_of(capture(Cross(), (Q, torch.zeros(2, 4, 9, 8)))) == (False, True)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("GPT2LMHeadModel", (False, True)),
        ("LlamaForCausalLM", (False, True)),
        ("ViTForImageClassification", (False, False)),
        ("BertForMaskedLM", (True, False)),
        ("two towers", (False, True)),
    ],
)
def test_masks_of_models(name: str, expected: tuple[bool, bool]) -> None:
    module, args, kwargs = CASES[name]()
    assert attention_of(capture(module, args, kwargs)) == expected


def test_masks_too_large_to_hold_are_compared_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from autopar.capture import evaluate

    monkeypatch.setattr(evaluate, "HELD_ELEMENTS", 16)
    monkeypatch.setattr(masks, "COMPARED_AT_ONCE", 12)
    assert attention_of(capture(Attention(compared), (Q,))) == (False, True)
    monkeypatch.setattr(masks, "COMPARED_ELEMENTS", 30)
    graph = capture(Attention(compared), (Q,))
    assert attention_of(graph) == (False, True)
    assert "evenly spread rows" in graph.notes[0]
