"""What the host takes to issue a step, beside which the device works: the longer of the two is the step.

The host issues kernels into a queue and runs ahead of the device, or the device waits for it. Its time is a
sum over kernels, calls of compiled regions and parameters; it depends on the machine, its load and its clock,
so it is given as a range.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from autopar.capture.graph import Graph
from autopar.planner.operators import PlannedType
from autopar.planner.prices import Prices
from autopar.planner.regions import execution_of
from autopar.planner.traffic import Traffic
from cost_models.device import Device

__all__ = ["HostTime", "host_time", "step_range_s"]

LOW, HIGH = 0.6, 1.6
"""Shares of the middle: medians exceed minima by 10 to 70 % (measured on hosts of H100 and H200, 2026)."""
VIEW = 0.25
"""Share of an operator's host time that a view takes: no kernel to launch."""
INTERCEPTED = 3.0
"""Operators that selective recomputation intercepts one by one in Python, against plain ones (assumed)."""
CALL_DISPATCHES = 4.0
"""Dispatches that the call of a compiled region takes where the profile does not say (assumed)."""


@dataclass(frozen=True, slots=True)
class HostTime:
    """Seconds to issue one step."""

    low_s: float
    middle_s: float
    high_s: float

    def limits(self, device_s: float) -> bool:
        """True where the device is expected to wait for the host."""
        return self.middle_s > device_s


def step_range_s(device_s: float, host: HostTime) -> tuple[float, float, float]:
    """(low, expected, high) of a step whose device works ``device_s``."""
    return max(device_s, host.low_s), max(device_s, host.middle_s), max(device_s, host.high_s)


def host_time(
    graph: Graph, types: Mapping[str, PlannedType], prices: Prices, *, parameters: int, collectives: int
) -> HostTime:
    """Host time of one step with ``parameters`` tensors to update; none on a CPU, where it is in the operators."""
    device = prices.cluster.device
    if device.kind != "cuda":
        return HostTime(0.0, 0.0, 0.0)
    counts = Counter(call.type for call in graph.calls)
    passes_s = sum(counts[name] * _segment_s(planned, prices) for name, planned in types.items())
    others = parameters + collectives * prices.execution.microbatches
    middle_s = prices.execution.microbatches * passes_s + others * device.host_dispatch_s
    return HostTime(LOW * middle_s, middle_s, HIGH * middle_s)


def _segment_s(planned: PlannedType, prices: Prices) -> float:
    """Forward and backward of one call of a segment."""
    device, fusion = prices.cluster.device, prices.fusion(planned)
    execution = execution_of(planned.role, prices.execution)
    traffic = list(fusion.traffic.values())
    forward, again = sum(map(_forward_kernels, traffic)), sum(map(_kernels_again, traffic))
    backward = float(sum(map(_backward_kernels, traffic)))
    if execution.is_compiled:
        return 2.0 * _call_s(device) + (forward + again + backward) * _kernel_s(device)
    views = VIEW * sum(each.family == "free" and not each.summed_bias for each in traffic)
    is_intercepted = execution.recompute == "selective"
    slower = INTERCEPTED if is_intercepted else 1.0
    is_repeated = execution.recompute != "none"
    forwards = slower * (forward + views + (again + views if is_repeated else 0.0))
    return (forwards + backward + views) * device.host_dispatch_s


def _call_s(device: Device) -> float:
    return device.compiled_call_s or CALL_DISPATCHES * device.host_dispatch_s


def _kernel_s(device: Device) -> float:
    return device.compiled_kernel_s or device.host_dispatch_s


def _forward_kernels(traffic: Traffic) -> int:
    return traffic.kernels + len(traffic.weights)


def _kernels_again(traffic: Traffic) -> int:
    casts = len(traffic.weights) if traffic.casts_again else 0
    return casts + (traffic.kernels if traffic.runs_again else 0)


def _backward_kernels(traffic: Traffic) -> int:
    beside = sum(count for _, count in traffic.sums) + len(traffic.narrowed) + len(traffic.copied)
    return traffic.backward_kernels + len(traffic.weights) + beside + traffic.summed_bias
