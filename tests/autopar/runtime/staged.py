"""A tied language model as a user writes it, and the stages that a generated program would hold for it.

What a later stage needs is threaded through: an early activation, whole numbers, and a mask of truth values.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.runtime import (
    Axis,
    Input,
    Mesh,
    Parameter,
    Pipeline,
    Running,
    Stage,
    Wire,
    all_gather,
    all_reduce,
    bind,
    count_targets,
    cross_entropy,
    distribute,
    embedding,
    init_mesh,
    local,
    orders_at_rest,
    shard_data,
    speak_plain_state,
    sum_gradient,
)
from autopar.torch_private import flatten_with_paths, write_structure
from tests.autopar.runtime.tiny import DATA_AXES, LAYOUTS, VOCABULARY, WIDTH, Block, block_forward

BATCH, TOKENS = 8, 5
SLICES = " ".join(f"{name}:S(0)" for name in DATA_AXES) + " microbatch:S(0)"
INPUTS = [Input(str(place), (BATCH, TOKENS), torch.int64, SLICES) for place in range(2)]


class Deep(nn.Module):
    """Returns its loss and its logits."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.shift = nn.Parameter(0.1 * torch.randn(7, WIDTH))
        self.layers = nn.ModuleList([Block() for _ in range(layers)])
        self.again = nn.Embedding(VOCABULARY, WIDTH)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(tokens) * self.scale + self.shift.sum(0)
        keep, start = tokens % 3 != 0, x
        for block in self.layers:
            x = block(x) * keep.unsqueeze(-1)
        logits = self.head(x + start + self.gain * self.again(tokens))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten()), logits


def first(self: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tp = self.axes["tp"]
    x = all_reduce(embedding(tokens, local(self.embed.weight), (tp,), VOCABULARY), tp) * self.scale
    x = x + local(self.shift).sum(0)
    return x, x, tokens, tokens % 3 != 0


def last(
    self: nn.Module, x: Tensor, start: Tensor, tokens: Tensor, targets: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    tp, data = self.axes["tp"], [self.axes[name] for name in DATA_AXES]
    gain = local(self.gain)
    for axis in data:
        gain = sum_gradient(gain, axis)
    x = x + start + gain * F.embedding(tokens, local(self.again.weight))
    logits = F.linear(sum_gradient(x, tp), local(self.head.weight))
    loss = (
        cross_entropy(logits.flatten(0, 1), targets.flatten(), vocabulary_axes=(tp,), reduction="sum") / count
    )
    for axis in data:
        loss = all_reduce(loss, axis)
    return loss, all_gather(logits, tp, 2, backward="slice")


def stage(start: int, end: int, total: int):
    """A stage's forward, of blocks ``start`` to ``end``."""

    def run(self: nn.Module, *values: Tensor):
        if start == 0:
            x, begin, tokens, keep = first(self, values[0])
        else:
            x, begin, tokens, keep, *_ = values
        for block in self.layers[start:end]:
            x = block(x) * keep.unsqueeze(-1)
        return last(self, x, begin, tokens, *values[-2:]) if end == total else (x, begin, tokens, keep)

    return run


def parameters_of(model: nn.Module, stages: int) -> list[Parameter]:
    """The table of parameters; each name with the stages that use it."""
    per_stage = len(model.layers) // stages
    used = {"embed.weight": (0, stages - 1), "shift": (0,), "scale": (0,)}

    def where(name: str) -> tuple[int, ...]:
        if name.startswith("layers."):
            return (int(name.split(".")[1]) // per_stage,)
        return used.get(name, (stages - 1,))

    def layout(name: str) -> str:
        return next((text for end, text in LAYOUTS.items() if name.endswith(end)), "tp:R")

    tied = Parameter(
        "head.weight",
        (VOCABULARY, WIDTH),
        torch.float64,
        "tp:S(0)",
        alias_of="embed.weight",
        stages=(stages - 1,),
    )
    return [
        *(
            Parameter(n, tuple(p.shape), p.dtype, layout(n), stages=where(n))
            for n, p in model.named_parameters()
        ),
        *(
            Parameter(n, tuple(b.shape), b.dtype, is_buffer=True, stages=where(n))
            for n, b in model.named_buffers()
        ),
        tied,
    ]


def stages_of(model: nn.Module, count: int, rows: int, dtype: torch.dtype) -> list[Stage]:
    """``count`` stages whose microbatches have ``rows`` sequences on a rank."""
    total = len(model.layers)
    wires = (
        Wire((rows, TOKENS, WIDTH), dtype),
        Wire((rows, TOKENS, WIDTH), dtype),
        Wire((rows, TOKENS), torch.int64, requires_grad=False),
        Wire((rows, TOKENS), torch.bool, requires_grad=False),
    )
    found = []
    for number in range(count):
        bounds = number * total // count, (number + 1) * total // count
        is_first, is_last = number == 0, number == count - 1
        found.append(
            Stage(
                stage(*bounds, total),
                reads=((0,) if is_first else ()) + ((1, 2) if is_last else ()),
                receives=() if is_first else wires,
                sends=() if is_last else wires,
            )
        )
    return found


def counts(axes: dict[str, Axis], tokens: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    return (count_targets(targets, axes=[axes[name] for name in DATA_AXES]),)


def staged(
    model: nn.Module,
    sizes: dict[str, int],
    schedule: str,
    chunks: int,
    microbatches: int,
    *,
    compile_forwards: bool = False,
    recompute: str | None = None,
    loss_scale: float | None = None,
    **options: object,
) -> Running:
    """Put a plain model to work on stages."""
    mesh: Mesh = init_mesh({name: sizes.get(name, 1) for name in ("pp", *DATA_AXES, "tp")}, "cpu")
    count = sizes["pp"] * chunks
    table = parameters_of(model, count)
    distribute(model, table, mesh, ("tp",))
    blocks = [f"layers.{i}" for i in range(len(model.layers))]
    levels = dict.fromkeys(blocks, recompute) if recompute else None
    forwards = dict.fromkeys(blocks, block_forward)
    bind(model, forwards, mesh.axes, compile_forwards=compile_forwards, recompute=levels)
    shard_data(
        model, blocks, mesh, replicate_axes=("dp_replicate",), shard_axes=("dp_shard", "cp"), **options
    )
    orders = orders_at_rest(table, mesh, ("tp",))
    speak_plain_state(model, orders)
    rows = BATCH // microbatches
    for name in DATA_AXES:
        rows //= mesh.axes[name].size
    stages = stages_of(model, count, rows, next(model.parameters()).dtype)
    structure = write_structure(flatten_with_paths((0, 0))[1])
    return Running(
        model,
        mesh,
        INPUTS,
        structure,
        orders,
        microbatches,
        ("sum", "cat 0"),
        counts=counts,
        pipeline=Pipeline(stages, table, schedule),
        loss_scale=loss_scale,
    )
