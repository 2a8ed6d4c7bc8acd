"""Models that are awkward to cut: on stages or in microbatches they train alike, or the error names the reason."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import autopar
from autopar.errors import AutoparError, ModelError
from tests.autopar.parity import EPSILON, NOISE_FLOOR, relative_errors
from tests.autopar.test_parity import LOSS_AND_GRADIENT_TOLERANCE, PARAMETER_TOLERANCE
from tests.gloo_pool import GlooPool
from tests.models import odd

STAGES = "pp=2,schedule=1f1b,microbatch=2"
CHUNKS = "pp=2,schedule=interleaved,chunks=2,microbatch=2"
LATE_WEIGHTS = "pp=2,schedule=zero-bubble,microbatch=2"
SLICES = "dp_shard=2,zero=2,microbatch=1"
TENSORS = "tp=2,microbatch=2,recompute=full"
WAYS = [STAGES, CHUNKS, LATE_WEIGHTS, SLICES, TENSORS]
STEPS = 3
LEARNING_RATE = 1e-3


@pytest.fixture(scope="module")
def pool() -> Iterator[GlooPool]:
    with GlooPool(2) as pool:
        yield pool


def _pair(kind: type[nn.Module], pins: str, **options: Any) -> tuple[nn.Module, Any]:
    torch.set_num_threads(1)
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(kind(**options))
    return made[0], autopar.parallelize(made[1], pin=pins)


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=LEARNING_RATE, eps=EPSILON)


def _loss(outputs: Any) -> Tensor:
    return outputs["loss"] if isinstance(outputs, dict) else outputs


def _train(name: str, pins: str) -> None:
    """Loss, gradients and parameters of ``STEPS`` steps equal the plain model's."""
    kind = getattr(odd, name)
    plain, module = _pair(kind, pins)
    optimizers = _adamw(plain), _adamw(module)
    for step in range(STEPS):
        args, kwargs = odd.batch_of(kind, step)
        expected, found = plain(*args, **kwargs), module(*args, **kwargs)
        _check_outputs(found, expected)
        _loss(expected).backward()
        _loss(found).backward()
        if step == 0:
            _check_gradients(module, plain)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    state = module.state_dict()
    errors = relative_errors(
        {name: value.float() for name, value in state.items()},
        {name: value.float() for name, value in plain.state_dict().items()},
        STEPS * LEARNING_RATE,
    )
    assert max(errors.values()) <= PARAMETER_TOLERANCE, errors


def _check_outputs(found: Any, expected: Any) -> None:
    tolerance: dict[str, Any] = {"rtol": LOSS_AND_GRADIENT_TOLERANCE, "atol": 1e-6}
    torch.testing.assert_close(_loss(found), _loss(expected), **tolerance)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        torch.testing.assert_close(found["logits"], expected["logits"], **tolerance)
        assert torch.equal(found["best"][0], expected["best"][0])


def _check_gradients(module: Any, plain: nn.Module) -> None:
    wanted = {name: p.grad for name, p in plain.named_parameters() if p.grad is not None}
    square = sum(float(gradient.square().sum()) for gradient in wanted.values())
    mean = (square / sum(gradient.numel() for gradient in wanted.values())) ** 0.5
    errors = relative_errors(module.running.full_gradients(), wanted, NOISE_FLOOR * mean)
    assert max(errors.values()) <= LOSS_AND_GRADIENT_TOLERANCE, errors


QUICK = {
    "Packed": STAGES,
    "SeveralLosses": SLICES,
    "MeanLoss": TENSORS,
    "TiedThrice": CHUNKS,
    "Frozen": STAGES,
    "FrozenEnd": LATE_WEIGHTS,
    "Unused": SLICES,
    "Buffers": CHUNKS,
    "LateInput": STAGES,
    "Skipping": CHUNKS,
}
"""The way in which each model is always trained."""


@pytest.mark.parametrize(
    ("name", "pins"),
    [
        pytest.param(name, pins, marks=[] if pins == quick else pytest.mark.slow)
        for name, quick in QUICK.items()
        for pins in WAYS
    ],
)
def test_awkward_models_train_alike(name: str, pins: str, pool: GlooPool) -> None:
    pool.run(_train, name, pins)


def _refused(name: str, pins: str, kind: type[Exception] = AutoparError) -> str:
    torch.set_num_threads(1)
    model_class = getattr(odd, name)
    module = autopar.parallelize(model_class(), pin=pins)
    args, kwargs = odd.batch_of(model_class)
    with pytest.raises(kind) as refusal:
        module(*args, **kwargs).sum().backward()
    return str(refusal.value)


@pytest.mark.parametrize("pins", [STAGES, SLICES])
@pytest.mark.parametrize("name", ["Batched", "MaskedMean"])
def test_a_batch_that_cannot_be_cut_is_refused(name: str, pins: str, pool: GlooPool) -> None:
    """Batch statistics, and a mean over a number of tokens that only the whole batch has."""
    assert all(message for message in pool.run(_refused, name, pins))


@pytest.mark.parametrize("pins", [STAGES, SLICES])
def test_a_loss_outside_of_the_model_is_refused(pins: str, pool: GlooPool) -> None:
    for message in pool.run(_refused, "WithoutLoss", pins, ModelError):
        assert "Let the model compute the whole loss" in message


def test_stages_need_segments(pool: GlooPool) -> None:
    for message in pool.run(_refused, "OneBlock", STAGES):
        assert "2 pipeline ranks are 2 stages, but the model has 1 segment" in message


def _drop_out(pins: str) -> tuple[float, float]:
    """Losses of one batch, twice in training and once in evaluation, against the plain model's evaluation."""
    plain, module = _pair(odd.Stack, pins, dropout=0.5)
    batch, _ = odd.batch_of(odd.Stack)
    first, second = module(*batch), module(*batch)
    first.backward()
    second.backward()
    for gradient in module.running.full_gradients().values():
        assert torch.isfinite(gradient).all()
    plain.eval()
    module.eval()
    with torch.no_grad():
        torch.testing.assert_close(module(*batch), plain(*batch))
    return first.item(), second.item()


@pytest.mark.parametrize("pins", [STAGES, SLICES, CHUNKS + ",recompute=full"])
def test_dropout_differs_from_call_to_call_and_not_between_ranks(pins: str, pool: GlooPool) -> None:
    losses = pool.run(_drop_out, pins)
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
