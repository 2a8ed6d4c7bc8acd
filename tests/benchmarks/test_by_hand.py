"""Every way to train by hand computes the plain model's loss and gradients, and trains to the same parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from autopar.models import parse_model
from benchmarks.by_hand import ddp, fsdp2, single, tensor_parallel
from benchmarks.by_hand.language_model import Recipe
from benchmarks.by_hand.trainer import Trainer
from tests.gloo_pool import GlooPool

MODELS = {
    "gpt": "gpt:layers=2,hidden=32,heads=4,vocab=64",
    "llama": "llama:layers=2,hidden=32,heads=8,kv_heads=4,ffn=64,vocab=64",
}
BATCH, SEQ = 8, 16
TOLERANCE = 1e-5
"""Relative, of norms: float32 in another order."""

WAYS: dict[str, Callable[..., Trainer]] = {
    "ddp": ddp.build,
    "fsdp2": partial(fsdp2.build, reshards=False),
    "fsdp2 reshard": partial(fsdp2.build, reshards=True),
    "tensor parallel": tensor_parallel.build,
}


@pytest.fixture(scope="module", params=[2, 4])
def pool(request: pytest.FixtureRequest) -> Iterator[GlooPool]:
    with GlooPool(request.param) as started:
        yield started


def reference(source: str) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Loss and gradients of the plain model, and its parameters after a step of AdamW."""
    built = parse_model(source).build(global_batch=BATCH, seq_len=SEQ, device="cpu")
    optimizer = torch.optim.AdamW(built.module.parameters(), lr=3e-4, fused=True)
    loss = built.module(*built.args)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in built.module.named_parameters()}
    optimizer.step()
    return loss.item(), gradients, {name: p.detach() for name, p in built.module.named_parameters()}


def trained(way: str, source: str, recipe: Recipe) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """The same by hand; whole tensors on every rank."""
    built = parse_model(source).build(global_batch=BATCH, seq_len=SEQ, device="cpu")
    build = single.build if way == "single" else WAYS[way]
    trainer = build(built.module, recipe)
    loss = trainer.mean(trainer.backward(*built.args))
    gradients = {name: whole(p.grad) for name, p in built.module.named_parameters()}
    trainer.optimizer.step()
    return loss, gradients, {name: whole(p.detach()) for name, p in built.module.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest relative difference of norms; infinite where names differ."""
    if actual.keys() != expected.keys():
        return float("inf")
    return max(float((actual[n] - expected[n]).norm() / expected[n].norm()) for n in expected)


def check(found: tuple, expected: tuple, tolerance: float = TOLERANCE) -> None:
    assert found[0] == pytest.approx(expected[0], rel=tolerance)
    assert difference(found[1], expected[1]) < tolerance
    assert difference(found[2], expected[2]) < 100 * tolerance  # a first step of Adam is the gradient's sign


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", MODELS)
def test_ranks_compute_the_plain_step(pool: GlooPool, model: str, way: str, recomputes: bool) -> None:
    recipe = Recipe(torch.float32, recomputes, is_compiled=False)
    expected = reference(MODELS[model])
    for found in pool.run(trained, way, MODELS[model], recipe):
        check(found, expected)


@pytest.mark.parametrize("way", WAYS)
def test_microbatches_change_nothing(pool: GlooPool, way: str) -> None:
    recipe = Recipe(torch.float32, is_compiled=False, microbatches=2)
    expected = reference(MODELS["llama"])
    for found in pool.run(trained, way, MODELS["llama"], recipe):
        check(found, expected)


@pytest.mark.parametrize("model", MODELS)
def test_one_device_computes_the_plain_step(model: str) -> None:
    recipe = Recipe(torch.float32, recomputes=True, is_compiled=False, microbatches=2)
    check(trained("single", MODELS[model], recipe), reference(MODELS[model]))
