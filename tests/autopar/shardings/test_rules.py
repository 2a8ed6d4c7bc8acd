"""Every declared rule, on simulated ranks: sharded equals unsharded, results and gradients.

For random calls of every operator, for every choice that an axis has (each factor, also in blocks, gradients
and partial sums passed through): operands are laid out over the ranks as the choice says, every rank
evaluates the generated expression, and what the ranks hold is joined again by the layouts of the results;
then the same backwards, by the layouts of the gradients.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from autopar import runtime
from autopar.codegen.expressions import Site, expression, runtime_function
from autopar.shardings.placement import Layout
from autopar.shardings.rules import RULES, loops_of, pointwise, reductions
from autopar.shardings.rules.declaration import Rule, rule
from autopar.shardings.strategy import Strategy, axis_choices, combined, divides
from tests.autopar.shardings.samples import SAMPLES, Draw, Sample, call_of
from tests.autopar.shardings.simulated import SimulatedMesh, gradient_layout, joined, spread

BLOCKS = frozenset({2, 3, 4, 6})
"""Block counts tried on every dim."""
SEEDS = range(3)
MESHES = ((2,), (3,), (4,))
COMBINATIONS = 12
"""Pairs of choices tried on each mesh of two axes."""
FACTOR_SEEDS = range(12)
"""Seeds among which every factor of an operator must have been sharded once."""


def test_every_rule_has_a_sample() -> None:
    assert set(SAMPLES) == set(RULES)


def _strategies(
    sample: Sample, sizes: tuple[int, ...], blocks: frozenset[int] = BLOCKS
) -> Iterator[Strategy]:
    """Every combination of choices of the axes that divides evenly."""
    call = sample.call
    places = {(value.name, dim): blocks for value in call.values.values() for dim in range(len(value.shape))}
    choices = axis_choices(call, loops_of(call), places)
    for combination in product(choices, repeat=len(sizes)):
        strategy = combined(call, combination)
        if divides(call, strategy, sizes):
            yield strategy


def _evaluate(text: str, environment: dict[str, Any]) -> tuple[Any, ...]:
    made = eval(text, environment)
    return (made,) if isinstance(made, Tensor) else tuple(made)


class _Ranks:
    """One strategy of one sample on all ranks of a mesh."""

    def __init__(self, sample: Sample, strategy: Strategy, mesh: SimulatedMesh) -> None:
        self.sample, self.strategy, self.mesh = sample, strategy, mesh
        names = {name: name for name in sample.tensors}
        self.site = Site(sample.call, strategy, names, "device", mesh.names, mesh.sizes)
        self.text = expression(self.site)
        self.generator = torch.Generator().manual_seed(0)
        self.operand_layouts = {
            value.name: layout for value, layout in zip(sample.call.operands, strategy.operands, strict=True)
        }

    def operands(self) -> list[dict[str, Tensor]]:
        """Every rank's pieces by value name, as leaves of its autograd graph."""
        pieces = {
            name: spread(tensor.detach(), self.operand_layouts[name], self.mesh.sizes, self.generator)
            for name, tensor in self.sample.tensors.items()
        }
        return [
            {
                name: pieces[name][rank].requires_grad_(tensor.requires_grad)
                for name, tensor in self.sample.tensors.items()
            }
            for rank in range(len(self.mesh.ranks))
        ]

    def environment(self, axes: dict[str, Any], operands: dict[str, Tensor]) -> dict[str, Any]:
        return {
            "torch": torch,
            "F": functional,
            "self": SimpleNamespace(training=True),
            "device": torch.device("cpu"),
            **{name: getattr(runtime, name) for name in ("attention", "cross_entropy", "embedding")},
            **axes,
            **operands,
        }

    def forward(self, operands: list[dict[str, Tensor]]) -> list[tuple[Tensor, ...]]:
        def on_rank(rank: int, axes: dict[str, Any]) -> tuple[Tensor, ...]:
            return _evaluate(self.text, self.environment(axes, operands[rank]))

        if runtime_function(self.site):
            return self.mesh.run(on_rank)
        return [on_rank(rank, self.mesh.axes(at)) for rank, at in enumerate(self.mesh.ranks)]

    def check(self) -> None:
        operands = self.operands()
        results = self.forward(operands)
        for position, whole in enumerate(self.sample.results):
            found = joined(
                [made[position].detach() for made in results],
                self.strategy.results[position],
                whole.shape,
                self.mesh.sizes,
            )
            torch.testing.assert_close(found, whole.detach().to(torch.float64), **_tolerance(whole))
        if any(whole.requires_grad for whole in self.sample.results):
            self.check_gradients(operands, results)

    def check_gradients(self, operands: list[dict[str, Tensor]], results: list[tuple[Tensor, ...]]) -> None:
        """A random gradient of the results, laid out as such, gives the gradients of the operands."""
        incoming = [
            torch.randn(whole.shape, dtype=whole.dtype, generator=self.generator)
            for whole in self.sample.results
        ]
        pieces = [
            spread(gradient, gradient_layout(layout), self.mesh.sizes, self.generator)
            for gradient, layout in zip(incoming, self.strategy.results, strict=True)
        ]
        for rank, made in enumerate(results):
            torch.autograd.backward(made, [piece[rank] for piece in pieces])
        names = [name for name, tensor in self.sample.tensors.items() if tensor.requires_grad]
        wholes = [self.sample.tensors[name] for name in names]
        expected = torch.autograd.grad(
            self.sample.results,
            wholes,
            incoming,
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for name, whole, gradient in zip(names, wholes, expected, strict=True):
            found = joined(
                [_gradient(each[name]) for each in operands],
                gradient_layout(self.operand_layouts[name]),
                whole.shape,
                self.mesh.sizes,
            )
            torch.testing.assert_close(found, gradient.to(torch.float64), **_tolerance(whole))


def _gradient(tensor: Tensor) -> Tensor:
    return tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)


def _tolerance(tensor: Tensor) -> dict[str, float]:
    return {"rtol": 1e-9, "atol": 1e-9} if tensor.dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-4}


def _is_consistent(sample: Sample, strategy: Strategy) -> bool:
    """A value that is read twice must be wanted in one layout to be one tensor; otherwise it is converted."""
    wanted: dict[str, Layout] = {}
    return all(
        wanted.setdefault(value.name, layout) == layout
        for value, layout in zip(sample.call.operands, strategy.operands, strict=True)
    )


@pytest.mark.parametrize("target", sorted(RULES))
def test_sharded_operator_equals_the_whole_one(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for sizes in MESHES:
        mesh = SimulatedMesh(("a",), sizes, monkeypatch)
        for seed in SEEDS:
            sample = call_of(target, SAMPLES[target](Draw(seed)))
            for strategy in _strategies(sample, sizes):
                if _is_consistent(sample, strategy):
                    _checked(sample, strategy, mesh)


@pytest.mark.parametrize("target", sorted(RULES))
@pytest.mark.parametrize("sizes", [(2, 2), pytest.param((2, 3), marks=pytest.mark.slow)], ids=str)
def test_sharded_over_two_axes_equals_the_whole_one(
    target: str, sizes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh = SimulatedMesh(("a", "b"), sizes, monkeypatch)
    sample = call_of(target, SAMPLES[target](Draw(100)))
    found = [each for each in _strategies(sample, sizes) if _is_consistent(sample, each)]
    for strategy in random.Random(0).sample(found, min(len(found), COMBINATIONS)):
        _checked(sample, strategy, mesh)


def _checked(sample: Sample, strategy: Strategy, mesh: SimulatedMesh) -> None:
    ranks = _Ranks(sample, strategy, mesh)
    try:
        ranks.check()
    except Exception as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in sample.tensors.items()}
        raise AssertionError(
            f"{sample.call.operator.target} of {shapes} over {mesh.sizes} by {strategy.names}: "
            f"{ranks.text}\n{error}"
        ) from error


@pytest.mark.parametrize("target", sorted(RULES))
def test_every_choice_has_a_name_of_its_own(target: str) -> None:
    """Plans store choices by name."""
    for seed in SEEDS:
        call = call_of(target, SAMPLES[target](Draw(seed))).call
        places = {(value.name, dim): BLOCKS for value in call.operands for dim in range(len(value.shape))}
        names = [choice.name for choice in axis_choices(call, loops_of(call), places)]
        assert len(set(names)) == len(names)


@pytest.mark.parametrize("target", sorted(RULES))
def test_every_factor_can_be_sharded(target: str) -> None:
    offered: set[str] = set()
    sharded: set[str] = set()
    for seed in FACTOR_SEEDS:
        sample = call_of(target, SAMPLES[target](Draw(seed)))
        loops = loops_of(sample.call)
        offered |= set(loops.shardable()) if loops else set()
        for strategy in _strategies(sample, (2,), blocks=frozenset()):
            sharded |= {factor for factor in strategy.factors if factor}
    assert sharded == offered


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("aten.softmax.int", rule("a b c -> a b c")),
        ("aten.mm.default", rule("m i, i m -> m m")),
        ("aten.mean.dim", reductions.RULES["aten.sum.dim_IntList"]),
        ("aten.relu.default", pointwise.RULES["aten.neg.default"]),
        ("aten.flip.default", pointwise.RULES["aten.neg.default"]),
    ],
)
def test_a_wrong_rule_is_noticed(target: str, wrong: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, target, wrong)
    with pytest.raises(AssertionError):
        test_sharded_operator_equals_the_whole_one(target, monkeypatch)
