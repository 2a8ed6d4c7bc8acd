"""``build``: the one visible order of what a program does to a module."""

from __future__ import annotations

from autopar.codegen.tables import blocks_table
from autopar.codegen.text import identifier
from autopar.shardings.sharded import ShardedGraph

__all__ = ["BUILD_NAMES", "build_source"]


BUILD_NAMES = (
    "Input",
    "Parameter",
    "Running",
    "bind",
    "distribute",
    "init_mesh",
    "initialize",
    "keep_identity",
    "orders_at_rest",
    "parameter_tree",
    "seed_ranks",
    "shard_data",
    "speak_plain_state",
    "train_on_random_data",
)
"""Functions of ``autopar.runtime`` that every program's ``build`` calls."""

_BUILD = '''
def build(module: nn.Module | None = None, *, compile: bool = {is_compiled}, seed: int = 0) -> Running:
    """Make `module` (or new parameters under the same names) run this program on the running processes."""
    mesh = init_mesh(MESH)
    is_new = module is None
    if is_new:
        module = parameter_tree(PARAMETERS, {{"": Root, **BLOCKS}})
        keep_identity(module)
    distribute(module, PARAMETERS, mesh, MODEL_AXES)
    forwards = {{"": Root.forward, **{{path: kind.forward for path, kind in BLOCKS.items()}}}}
    bind(module, forwards, mesh.axes, compile_forwards=compile{head}{recompute})
    shard_data(
        module,
        BLOCKS,
        mesh,
        replicate_axes=REPLICATE_AXES,
        shard_axes=SHARD_AXES,
        compute_dtype=COMPUTE_DTYPE,{zero}
    )
    if is_new:
        module.to_empty(device=mesh.device)
        initialize(module, seed)
    orders = orders_at_rest(PARAMETERS, mesh, MODEL_AXES)
    speak_plain_state(module, orders)
    seed_ranks(seed, mesh.axes, RANDOM_AXES)
    return Running(module, mesh, INPUTS, OUTPUTS, orders{microbatches})


if __name__ == "__main__":
    train_on_random_data(build())
'''


def build_source(sharded: ShardedGraph, head: str = "", *, is_compiled: bool = False) -> str:
    """Which block runs where, and the one visible order of what is done to the module.

    ``head`` is the class of what follows the blocks; ``is_compiled`` is the default of ``compile``.
    """
    blocks = {call.module: call.type for call in sharded.graph.calls if call.module}
    (stage,) = sharded.stages
    has_shards = any(axis.kind == "shard" for axis in sharded.axes)
    microbatches = sharded.graph.microbatches
    counts = ", counts=count_targets_of" if microbatches.counted else ""
    build = _BUILD.format(
        is_compiled=is_compiled,
        head=f", head={identifier(head)}.forward" if head else "",
        recompute=", recompute=dict.fromkeys(BLOCKS, RECOMPUTE)" if stage.recompute != "none" else "",
        zero="\n        zero=ZERO," if has_shards else "",
        microbatches=f", MICROBATCHES, JOINS{counts}" if microbatches.count > 1 else "",
    )
    return f"\n{blocks_table(list(blocks.items()))}\n{build}"
