"""What a generated program needs while it trains: torch, and this package."""

from autopar.runtime.attention import attention
from autopar.runtime.axis import Axis, axes_of
from autopar.runtime.batch import Input
from autopar.runtime.binding import bind
from autopar.runtime.collectives import (
    all_gather,
    all_reduce,
    all_to_all,
    reduce_scatter,
    shard,
    share_gradient,
    sum_gradient,
)
from autopar.runtime.cross_entropy import count_targets, cross_entropy
from autopar.runtime.data import shard_data
from autopar.runtime.distribute import distribute, local, orders_at_rest
from autopar.runtime.embedding import embedding
from autopar.runtime.identity import keep_identity
from autopar.runtime.mesh import Mesh, init_mesh
from autopar.runtime.parameter import Parameter
from autopar.runtime.pipeline import Pipeline, Stage, Wire
from autopar.runtime.products import aligned_linear
from autopar.runtime.randomness import seed_ranks
from autopar.runtime.running import Running, train_on_random_data
from autopar.runtime.state import (
    clip_grad_norm,
    full_gradients,
    full_optimizer_state,
    full_state_dict,
    load_full_optimizer_state,
    speak_plain_state,
)
from autopar.runtime.tree import initialize, materialize, parameter_tree

__all__ = [
    "Axis",
    "Input",
    "Mesh",
    "Parameter",
    "Pipeline",
    "Running",
    "Stage",
    "Wire",
    "aligned_linear",
    "all_gather",
    "all_reduce",
    "all_to_all",
    "attention",
    "axes_of",
    "bind",
    "clip_grad_norm",
    "count_targets",
    "cross_entropy",
    "distribute",
    "embedding",
    "full_gradients",
    "full_optimizer_state",
    "full_state_dict",
    "init_mesh",
    "initialize",
    "keep_identity",
    "load_full_optimizer_state",
    "local",
    "materialize",
    "orders_at_rest",
    "parameter_tree",
    "reduce_scatter",
    "seed_ranks",
    "shard",
    "shard_data",
    "share_gradient",
    "speak_plain_state",
    "sum_gradient",
    "train_on_random_data",
]
