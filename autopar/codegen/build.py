"""``build``: the one visible order of what a program does to a module."""

from __future__ import annotations

from autopar.codegen.tables import blocks_table, has_recompute, output_joins
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
    "materialize",
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
        module = parameter_tree(PARAMETERS, {root_class})
        keep_identity(module)
    distribute(module, PARAMETERS, mesh, MODEL_AXES)
    forwards = {{{root_forward}path: kind.forward for path, kind in BLOCKS.items()}}{more}
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
        materialize(module, mesh.device)
        initialize(module, seed)
    orders = orders_at_rest(PARAMETERS, mesh, MODEL_AXES)
    speak_plain_state(module, orders)
    seed_ranks(seed, mesh.axes, RANDOM_AXES)
    return Running({running})


if __name__ == "__main__":
    train_on_random_data(build())
'''


def build_source(sharded: ShardedGraph, head: str = "", *, is_compiled: bool = False) -> str:
    """Which block runs where, and the one visible order of what is done to the module.

    ``head`` is the class of what follows the blocks; ``is_compiled`` is the default of ``compile``.
    """
    blocks = {call.module: call.type for call in sharded.graph.calls if call.module}
    is_pipeline = sharded.stage_ranks > 1
    has_shards = any(axis.kind == "shard" for axis in sharded.axes)
    build = _BUILD.format(
        is_compiled=is_compiled,
        head=f", head={identifier(head)}.forward" if head else "",
        root_class="BLOCKS" if is_pipeline else '{"": Root, **BLOCKS}',
        root_forward="" if is_pipeline else '"": Root.forward, **{',
        more="" if is_pipeline else "}",
        recompute=", recompute=RECOMPUTE" if has_recompute(sharded) else "",
        zero="\n        zero=ZERO," if has_shards else "",
        running=_running_arguments(sharded),
    )
    return f"\n{blocks_table(list(blocks.items()))}\n{build}"


def _running_arguments(sharded: ShardedGraph) -> str:
    """What ``Running`` is told: of the plain step, and of what is beside it."""
    microbatches = sharded.graph.microbatches
    plain = "module, mesh, INPUTS, OUTPUTS, orders"
    options = ["MICROBATCHES", "JOINS"] if output_joins(sharded) else []
    options += ["counts=count_targets_of"] if microbatches.counted else []
    options += ["pipeline=Pipeline(STAGES, PARAMETERS, SCHEDULE)"] if sharded.stage_ranks > 1 else []
    if not options:
        return plain
    return "".join(["\n", *(f"        {line},\n" for line in (plain, *options)), "    "])
