"""The collectives of a conversion, as calls of ``autopar.runtime``."""

from __future__ import annotations

from autopar.shardings.conversion import Step

__all__ = ["RUNTIME_NAMES", "conversion_call"]

RUNTIME_NAMES = {
    ("nothing", "all_reduce"): "sum_gradient",
    ("nothing", "share"): "share_gradient",
    ("slice", "all_gather"): "shard",
    ("slice", "pad"): "shard",
    ("slice", "nothing"): "shard",
}
"""Runtime functions that are not called like their forward collective."""


def conversion_call(step: Step, tensor: str, axis: str) -> tuple[str, str] | None:
    """(runtime function, call) of one step; None where nothing has to be done."""
    if step.forward == "nothing" and step.backward == "nothing":
        return None
    name = RUNTIME_NAMES.get((step.forward, step.backward), step.forward)
    arguments = [tensor, axis]
    match step.forward:
        case "all_gather":
            arguments += [f"dim={step.source.dim}", *_blocks("blocks", step.source_blocks)]
            arguments += ['backward="slice"'] if step.backward == "slice" else []
        case "reduce_scatter" | "slice":
            arguments += [f"dim={step.target.dim}", *_blocks("blocks", step.target_blocks)]
            arguments += ['backward="pad"'] if step.backward == "pad" else []
        case "all_reduce":
            arguments += ['backward="all_reduce"'] if step.backward == "all_reduce" else []
        case "all_to_all":
            arguments += [f"from_dim={step.source.dim}", f"to_dim={step.target.dim}"]
            arguments += _blocks("from_blocks", step.source_blocks) + _blocks("to_blocks", step.target_blocks)
    return name, f"{name}({', '.join(arguments)})"


def _blocks(name: str, blocks: int) -> list[str]:
    return [f"{name}={blocks}"] if blocks > 1 else []
