"""The kernels of one operator on one device, forward and backward: works for the cost models to price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod

from autopar.planner.traffic import Traffic
from autopar.planner.work import works
from autopar.shardings.calls import Call
from cost_models.dtypes import dtype_bytes
from cost_models.operators import Work

__all__ = ["Kernels", "kernels_of"]

Shape = tuple[int, ...]

RESTING_BYTES = 4
"""Parameters rest in float32."""
_BACKWARD = {
    "norm": "norm_backward",
    "rms_norm": "rms_norm_backward",
    "cross_entropy": "cross_entropy_backward",
    "log_softmax": "log_softmax_backward",
}


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one operator runs on its device."""

    forward: tuple[Work, ...]
    backward: tuple[Work, ...]
    """Recomputation included."""


def kernels_of(call: Call, operands: Sequence[Shape], results: Sequence[Shape], traffic: Traffic) -> Kernels:
    """The works of a call on local shapes, beside the neighbours that ``traffic`` was worked out for."""
    return _Local(call, operands, results, traffic).kernels()


class _Local:
    """One call in the shapes of one device."""

    def __init__(
        self, call: Call, operands: Sequence[Shape], results: Sequence[Shape], traffic: Traffic
    ) -> None:
        self.call, self.traffic = call, traffic
        self.operands, self.results = operands, results

    def kernels(self) -> Kernels:
        forward = [*self._casts(RESTING_BYTES, 0), *self._forward()]
        again = [*self._casts(RESTING_BYTES, 0)] if self.traffic.casts_again else []
        again += self._forward() if self.traffic.runs_again else []
        backward = [*again, *self._backward(), *self._extras(), *self._casts(0, RESTING_BYTES)]
        return Kernels(tuple(forward), tuple(backward))

    def operand_bytes(self, position: int) -> int:
        return prod(self.operands[position]) * dtype_bytes(self.call.operands[position].dtype)

    def result_bytes(self, position: int) -> int:
        value = self.call.results[position]
        return prod(self.results[position]) * dtype_bytes(value.dtype) if value is not None else 0

    def _casts(self, read: int, written: int) -> list[Work]:
        """Weights from their dtype at rest to that of the computation, or their gradients back."""
        found = []
        for position in self.traffic.weights:
            value = self.call.operands[position]
            elements, narrow = prod(self.operands[position]), dtype_bytes(value.dtype)
            if read or value.requires_grad:
                sizes = (elements * (read or narrow), elements * (written or narrow))
                found.append(Work("copy", 0.0, *sizes, value.dtype))
        return found

    def _forward(self) -> list[Work]:
        if self.traffic.family in ("matmul", "attention"):
            return [works(self.call, self.operands, self.results)[0]]
        if self.traffic.family == "log_softmax":
            logits = self.operand_bytes(0)
            return [Work("log_softmax", 0.0, logits, logits, self.call.operands[0].dtype)]
        if self.traffic.family == "embedding":
            rows = self.result_bytes(0)
            return [Work("embedding", 0.0, rows, rows, self.call.result.dtype)]
        return self._moved(
            self.traffic.family,
            sum(self.operand_bytes(position) for position in self.traffic.reads),
            sum(self.result_bytes(position) for position in self.traffic.writes),
            self.traffic.kernels,
        )

    def _moved(self, family: str, read: float, written: float, kernels: int) -> list[Work]:
        if not (read or written or kernels) or family == "free":
            return []
        return [Work(family, 0.0, read, written, self.call.result.dtype, kernels=kernels)]

    def _backward(self) -> list[Work]:
        if not self.traffic.gradient_writes and not self.traffic.gradient_reads:
            return []
        match self.traffic.family:
            case "matmul":
                return self._product_gradients()
            case "attention":
                backward = works(self.call, self.operands, self.results)[1]
                return [backward] if backward is not None else []
            case "log_softmax":
                logits = self.operand_bytes(0)
                return [
                    Work("log_softmax_backward", 0.0, 2 * logits, 2 * logits, self.call.operands[0].dtype)
                ]
            case "embedding":
                rows, table = self.result_bytes(0), self.operand_bytes(0)
                return [Work("embedding_backward", 0.0, 2 * rows, table + rows, self.call.result.dtype)]
        read = sum(pieces * self.result_bytes(position) for position, pieces in self.traffic.gradient_reads)
        read += sum(
            pieces * self.operand_bytes(position) for position, pieces in self.traffic.operand_gradient_reads
        )
        read += sum(self.operand_bytes(position) for position in self.traffic.saved_operands)
        read += sum(self.result_bytes(position) for position in self.traffic.saved_results)
        written = sum(self.operand_bytes(position) for position in self.traffic.gradient_writes)
        family = _BACKWARD.get(self.traffic.family, self.traffic.family)
        return self._moved(family, read, written, self.traffic.backward_kernels)

    def _product_gradients(self) -> list[Work]:
        """Of ``m × k @ k × n``: ``m × n @ n × k`` for the first factor, ``k × m @ m × n`` for the second."""
        forward = works(self.call, self.operands, self.results)[0]
        moved = (forward.read_bytes, forward.written_bytes)
        shapes = {0: (forward.m, forward.k, forward.n), 1: (forward.n, forward.k, forward.m)}
        found = []
        for position in self.traffic.gradient_writes:
            m, n, k = shapes.get(position, shapes[0])
            found.append(replace(forward, m=m, n=n, k=k, read_bytes=moved[0], written_bytes=moved[1]))
        return found

    def _extras(self) -> Iterable[Work]:
        """Kernels beside the operator's own gradient."""
        dtype = self.call.result.dtype
        for position, count in self.traffic.sums:
            size = self.operand_bytes(position)
            yield Work("elementwise", 0.0, 2.0 * count * size, float(count * size), dtype, kernels=count)
        for position in self.traffic.narrowed:
            elements = prod(self.operands[position])
            wide = dtype_bytes(dtype) * elements
            yield Work("copy", 0.0, wide, self.operand_bytes(position), dtype)
        for position in self.traffic.copied:
            size = self.operand_bytes(position)
            yield Work("copy", 0.0, size, size, dtype)
        if self.traffic.summed_bias and self.call.operands[1].requires_grad:
            yield Work("reduction", 0.0, self.result_bytes(0), 0.0, dtype)
