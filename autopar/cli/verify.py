"""The sharded model's loss and gradients against the plain model's on one device, from equal parameters."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from autopar.cli.outcome import Verification
from autopar.cli.request import Request, build_source
from autopar.parallel import parallelize
from autopar.plan.schema import Plan

__all__ = ["gradient_errors", "verify"]

TOLERANCES = {"fp32": 1e-5, "bf16": 3e-2, "fp16": 1e-2}
"""Relative, by precision: sums in another order differ by some 1e-7, products in bfloat16 by some 4e-3."""
LOSS_SCALES = {"fp16": 2.0**12}
"""Small gradients underflow in float16 unless the loss is scaled, as a training loop does."""
NOISE_FLOOR = 1e-3
"""A gradient this much smaller, element for element, than the average one counts as this large."""


def verify(request: Request, device: torch.device) -> Verification | None:
    """Compare on rank 0; every rank calls it. The result is rank 0's alone."""
    mode = "eval" if _drops_out(request.plan) else "train"
    loss, gradients = _sharded(request, device, mode)
    found = None
    if dist.get_rank() == 0:
        print("comparing with the single-device model", flush=True)
        precision = request.plan.training.precision
        plain_loss, plain_gradients = _plain(request, device, mode)
        found = _compared(loss, gradients, plain_loss, plain_gradients, mode, TOLERANCES[precision])
    dist.barrier()
    return found


def _drops_out(plan: Plan) -> bool:
    """True when some operator of the plan draws random numbers in training."""
    return any(
        ("dropout" in operator.call and not operator.call.startswith("aten.scaled_dot_product"))
        or (operator.call.startswith("aten.scaled_dot_product") and _attention_dropout(operator) > 0)
        for segment in plan.segments
        for operator in segment.operators
    )


def _attention_dropout(operator: Any) -> float:
    given = operator.arguments[4] if len(operator.arguments) > 4 else operator.keywords.get("dropout_p", 0.0)
    return float(given)


def _sharded(request: Request, device: torch.device, mode: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and, on rank 0, whole gradients of the program."""
    built = build_source(request.plan, str(device))
    module: Any = parallelize(built.module, inputs=built.inputs, plan=request.plan, compile=request.compile)
    module.train(mode == "train")
    loss = module(*built.args, **built.kwargs)
    scale = LOSS_SCALES.get(request.plan.training.precision, 1.0)
    (scale * loss).backward()
    gradients = {name: gradient / scale for name, gradient in module.running.full_gradients().items()}
    return loss.item(), _on_cpu(gradients) if dist.get_rank() == 0 else {}


def _plain(request: Request, device: torch.device, mode: str) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of the user's module as it is."""
    built = build_source(request.plan, str(device))
    built.module.train(mode == "train")
    loss = built.module(*built.args, **built.kwargs)
    loss.backward()
    gradients = {name: p.grad for name, p in built.module.named_parameters() if p.grad is not None}
    return loss.item(), _on_cpu(gradients)


def _on_cpu(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient.detach().to("cpu", torch.float64) for name, gradient in gradients.items()}


def _compared(
    loss: float,
    gradients: Mapping[str, Tensor],
    plain_loss: float,
    plain_gradients: Mapping[str, Tensor],
    mode: str,
    tolerance: float,
) -> Verification:
    loss_error = _relative(abs(loss - plain_loss), abs(plain_loss))
    errors = gradient_errors(gradients, plain_gradients)
    worst = max(errors, key=lambda name: errors[name], default="")
    largest = errors.get(worst, 0.0)
    passed = loss_error <= tolerance and largest <= tolerance
    return Verification(loss_error, largest, worst, passed, tolerance, mode)


def gradient_errors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, float]:
    """Norm-wise relative error by parameter; a gradient that one side lacks counts as zero there.

    Some gradients are zero but for rounding (the bias of attention's keys, as softmax ignores a shift): they
    are held against ``NOISE_FLOOR`` times the root mean square of all gradients instead of their own norm.
    """
    elements = sum(gradient.numel() for gradient in expected.values())
    square = sum(float(gradient.square().sum()) for gradient in expected.values())
    floor = NOISE_FLOOR * math.sqrt(square / elements) if elements else 0.0
    errors = {}
    for name in {**expected, **found}:
        given = found.get(name, torch.zeros(()))
        wanted = expected.get(name, torch.zeros(()))
        scale = max(float(wanted.norm()), floor * math.sqrt(max(given.numel(), wanted.numel())))
        errors[name] = _relative(float((given - wanted).norm()), scale)
    return errors


def _relative(error: float, scale: float) -> float:
    """``error / scale``, the largest number where that is not finite, so that it can be written as JSON."""
    if error == 0.0:
        return 0.0
    ratio = error / scale if scale else math.inf
    return ratio if math.isfinite(ratio) else sys.float_info.max
