"""Sharding rules of matrix products and convolutions: sharding a reduced factor leaves a partial sum."""

from __future__ import annotations

from autopar.shardings.calls import Call
from autopar.shardings.loops import Loops
from autopar.shardings.notation import loops_of_text
from autopar.shardings.rules.declaration import Rule, rule

__all__ = ["RULES"]


def _linear(call: Call) -> Loops | None:
    """Bias is added on every rank, so the reduced factor may be sharded only without one."""
    has_bias = len(call.operands) == 3
    text = "… [i], o [i], o -> … o" if has_bias else "… i, o i -> … o"
    return rule(text, keywords=("input", "weight", "bias"))(call)


def _addmm(call: Call) -> Loops | None:
    text = "n o, n [i], [i] o -> n o" if len(call.operands[0].shape) == 2 else "o, n [i], [i] o -> n o"
    return rule(text)(call)


def _matmul(call: Call) -> Loops | None:
    left, right = (value.shape for value in call.operands)
    if len(left) >= 2 and len(right) == 2:
        return rule("… m i, i n -> … m n")(call)
    if len(left) >= 2 and len(right) > 2:
        return rule("… m i, … i n -> … m n")(call)
    return None


def _einsum(call: Call) -> Loops | None:
    """The equation is the rule."""
    equation = str(call.argument(0, "equation")).replace(" ", "")
    if "." in equation or "->" not in equation:
        return None
    left, _, right = equation.partition("->")
    if any(len(set(group)) != len(group) for group in left.split(",")):
        return None
    text = ", ".join(" ".join(group) for group in left.split(",")) + " -> " + " ".join(right)
    operands = [(index, value.shape) for index, value in enumerate(call.operands)]
    return loops_of_text(text, operands, [call.result.shape])


def _convolution(spatial: str) -> Rule:
    def loops(call: Call) -> Loops | None:
        groups = call.argument(6, "groups", 1)
        has_bias = len(call.operands) == 3
        if groups != 1:
            return None
        channels = "[i]" if has_bias else "i"
        text = f"n {channels} {spatial}, o {channels} {_kernel(spatial)}, o -> n o {_output(spatial)}"
        return rule(text, keywords=("input", "weight", "bias"))(call)

    return loops


def _kernel(spatial: str) -> str:
    return " ".join(f"[k{position}]" for position, _ in enumerate(spatial.split()))


def _output(spatial: str) -> str:
    return " ".join(f"[o{position}]" for position, _ in enumerate(spatial.split()))


RULES: dict[str, Rule] = {
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.matmul.default": _matmul,
    "aten.mm.default": rule("m i, i n -> m n"),
    "aten.bmm.default": rule("b m i, b i n -> b m n"),
    "aten.einsum.default": _einsum,
    "aten.outer.default": rule("m, n -> m n"),
    "aten.conv1d.default": _convolution("[w]"),
    "aten.conv2d.default": _convolution("[h] [w]"),
}
