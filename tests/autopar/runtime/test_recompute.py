"""Recomputation changes what is kept and what is run again, never a number."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.runtime import all_gather, bind, full_gradients, reduce_scatter
from autopar.runtime.recompute import recomputed
from tests.autopar.runtime.meshes import mesh_axes
from tests.autopar.runtime.tiny import Tiny, batch, my_part, parallel

WIDTH = 16


class Operators(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[operator.overloadpacket.__name__] += 1
        return operator(*args, **(kwargs or {}))


class Feed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)


def feed(self: nn.Module, x: Tensor) -> Tensor:
    h = F.linear(F.layer_norm(x, (WIDTH,)), self.up.weight, self.up.bias)
    return x + F.linear(F.dropout(F.gelu(h), 0.3), self.down.weight, self.down.bias)


def sharded_feed(self: nn.Module, x: Tensor) -> Tensor:
    """Sequence parallel: rows gathered before, summed and scattered after."""
    tp = self.axes["tp"]
    h = F.linear(all_gather(F.layer_norm(x, (WIDTH,)), tp, 0), self.up.weight, self.up.bias)
    return x + reduce_scatter(F.linear(F.gelu(h), self.down.weight), tp, 0)


def run(forward: Any, level: str | None, is_compiled: bool = False, axes: Any = None) -> tuple[Any, ...]:
    """Gradients of two blocks, the bytes that autograd saved, the operators that ran in backward."""
    torch.manual_seed(0)
    model = nn.Sequential(Feed(), Feed())
    levels = {"0": level, "1": level} if level else {}
    bind(model, {"0": forward, "1": forward}, axes or {}, compile_forwards=is_compiled, recompute=levels)
    x = torch.randn(8, WIDTH, requires_grad=True)
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel() * tensor.element_size())
        return tensor

    torch.manual_seed(1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(x).square().sum()
    with Operators() as operators:
        loss.backward()
    gradients = [x.grad, *(p.grad for p in model.parameters())]
    return gradients, sum(saved), operators.counts


def equal(left: list[Tensor | None], right: list[Tensor | None]) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("level", ["selective", "full"])
def test_gradients_are_the_same_and_less_is_saved(level):
    wanted, all_bytes, once = run(feed, None)
    found, some_bytes, twice = run(feed, level)
    assert equal(found, wanted), "dropout repeats its numbers"
    assert some_bytes < all_bytes / 4
    assert twice["native_layer_norm"] - once["native_layer_norm"] == 2
    assert twice["gelu"] - once["gelu"] == 2
    again = {"full": 2, "selective": 0}[level]  # the last product's result is not read in backward
    assert twice["addmm"] - once["addmm"] == again


@pytest.mark.slow
@pytest.mark.parametrize("level", ["selective", "full"])
def test_compiled_blocks_recompute_inside_their_graph(level):
    wanted, all_bytes, _ = run(feed, None, is_compiled=True)
    found, some_bytes, _ = run(feed, level, is_compiled=True)
    assert equal(found, wanted)
    assert some_bytes < all_bytes


def test_blocks_of_one_forward_and_level_are_compiled_once():
    model = nn.Sequential(*(Feed() for _ in range(4)))
    paths = [str(number) for number in range(4)]
    levels = {"1": "full", "2": "full", "3": "selective"}
    bind(model, dict.fromkeys(paths, feed), {}, compile_forwards=True, recompute=levels)
    functions = [block.forward.__func__ for block in model]
    assert functions[1] is functions[2]
    assert len(set(functions)) == 3


@pytest.mark.parametrize("level", ["selective", "full"])
def test_nothing_is_recomputed_without_gradients(level):
    calls = []
    forward = recomputed(lambda self, x: calls.append(torch.is_grad_enabled()) or x * 2, level)
    with torch.no_grad():
        assert torch.equal(forward(nn.Module(), torch.ones(2)), torch.full((2,), 2.0))
    assert calls == [False]


def test_other_levels_are_refused():
    with pytest.raises(ValueError, match="'selective' or 'full', not 'some'"):
        recomputed(feed, "some")


def collectives(level: str, is_compiled: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    axes = {"tp": mesh_axes((4,))[0]}
    wanted, _, once = run(sharded_feed, None, is_compiled, axes)
    found, _, twice = run(sharded_feed, level, is_compiled, axes)
    names = ("all_gather_into_tensor", "reduce_scatter_tensor")
    return {"equal": equal(found, wanted)} | {name: twice[name] - once[name] for name in names}


@pytest.mark.parametrize("level", ["selective", "full"])
def test_sums_over_ranks_are_kept_and_gathers_repeated(pool, level):
    for answer in pool.run(collectives, level, False):
        again = {"full": 2, "selective": 0}[level]
        assert answer == {
            "equal": True,
            "all_gather_into_tensor": 2,
            "reduce_scatter_tensor": answer["reduce_scatter_tensor"],
        }
        assert answer["reduce_scatter_tensor"] <= again


@pytest.mark.slow
@pytest.mark.parametrize("level", ["selective", "full"])
def test_compiled_collectives_recompute_alike(pool, level):
    assert all(answer["equal"] for answer in pool.run(collectives, level, True, timeout_s=300))


def sharded(sizes: dict, level: str, is_compiled: bool) -> bool:
    gradients = []
    for each in (None, level):
        torch.manual_seed(0)
        model = Tiny()
        mesh, orders = parallel(model, sizes, recompute=each, compile_forwards=is_compiled)
        tokens, targets = batch(0)
        model(my_part(tokens, mesh.axes), my_part(targets, mesh.axes)).backward()
        gradients.append(full_gradients(model, orders))
    return all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


@pytest.mark.parametrize("level", ["selective", "full"])
@pytest.mark.parametrize("sizes", [{"dp_shard": 2, "tp": 2}, {"dp_replicate": 2, "dp_shard": 2}], ids=str)
def test_recomputing_blocks_gather_their_parameters_again(pool, sizes, level):
    assert all(pool.run(sharded, sizes, level, False))


@pytest.mark.slow
@pytest.mark.parametrize("level", ["selective", "full"])
def test_recomputing_compiled_blocks_of_sharded_parameters(pool, level):
    assert all(pool.run(sharded, {"dp_shard": 2, "tp": 2}, level, True, timeout_s=300))
