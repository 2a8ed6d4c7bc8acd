"""A small model as a user writes it, and the sharded forwards a generated program would hold for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autopar.runtime import (
    Axis,
    Mesh,
    Parameter,
    all_reduce,
    bind,
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

WIDTH, HEADS, VOCABULARY, LAYERS = 12, 4, 20, 3
DATA_AXES = ("dp_replicate", "dp_shard", "cp")


class Block(nn.Module):
    """Attention with a fused q, k, v projection."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Tiny(nn.Module):
    """Returns its loss; the head is tied to the embedding; one parameter has an odd number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.shift = nn.Parameter(0.1 * torch.randn(7, WIDTH))
        self.layers = nn.ModuleList([Block() for _ in range(LAYERS)])
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.full((1,), 0.5))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens) * self.scale + self.shift.sum(0)
        for block in self.layers:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


def block_forward(self: nn.Module, x: Tensor) -> Tensor:
    """Megatron: heads sharded over tp."""
    tp = self.axes["tp"]
    h = F.layer_norm(x, (WIDTH,), local(self.norm.weight), local(self.norm.bias))
    h = F.linear(sum_gradient(h, tp), local(self.qkv.weight), local(self.qkv.bias))
    q, k, v = (y.unflatten(-1, (HEADS // tp.size, -1)).transpose(1, 2) for y in h.chunk(3, -1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    return x + all_reduce(F.linear(y, local(self.out.weight)), tp) + local(self.out.bias)


def root_forward(self: nn.Module, tokens: Tensor, targets: Tensor) -> Tensor:
    """The vocabulary is sharded over tp, the batch over the data axes."""
    tp, data = self.axes["tp"], [self.axes[name] for name in DATA_AXES]
    x = all_reduce(embedding(tokens, local(self.embed.weight), (tp,), VOCABULARY), tp) * self.scale
    x = x + local(self.shift).sum(0)
    for block in self.layers:
        x = block(x)
    logits = F.linear(sum_gradient(x, tp), local(self.head.weight)).flatten(0, 1)
    loss = cross_entropy(logits, targets.flatten(), batch_axes=data, vocabulary_axes=(tp,))
    for axis in data:
        loss = all_reduce(loss, axis)
    return loss


LAYOUTS = {
    "embed.weight": "tp:S(0)",
    "qkv.weight": "tp:S(0)x3",
    "qkv.bias": "tp:S(0)x3",
    "out.weight": "tp:S(1)",
}


def parameters_of(model: nn.Module) -> list[Parameter]:
    def layout(name: str) -> str:
        return next((text for end, text in LAYOUTS.items() if name.endswith(end)), "tp:R")

    found = [Parameter(n, tuple(p.shape), p.dtype, layout(n)) for n, p in model.named_parameters()]
    buffers = [Parameter(n, tuple(b.shape), b.dtype, is_buffer=True) for n, b in model.named_buffers()]
    tied = Parameter("head.weight", (VOCABULARY, WIDTH), torch.float32, "tp:S(0)", alias_of="embed.weight")
    return [*found, *buffers, tied]


def mesh_of(sizes: dict[str, int]) -> Mesh:
    return init_mesh({name: sizes.get(name, 1) for name in (*DATA_AXES, "tp")}, "cpu")


def parallel(
    model: nn.Module,
    sizes: dict[str, int],
    *,
    compile_forwards: bool = False,
    recompute: str | None = None,
    **options: object,
) -> tuple:
    """Shard a plain model in place over a mesh; returns the mesh and the orders at rest."""
    mesh = mesh_of(sizes)
    table = parameters_of(model)
    distribute(model, table, mesh, ("tp",))
    blocks = [f"layers.{i}" for i in range(LAYERS)]
    shard_data(
        model, blocks, mesh, replicate_axes=("dp_replicate",), shard_axes=("dp_shard", "cp"), **options
    )
    orders = orders_at_rest(table, mesh, ("tp",))
    speak_plain_state(model, orders)
    forwards = {"": root_forward} | dict.fromkeys(blocks, block_forward)
    levels = dict.fromkeys(blocks, recompute) if recompute else None
    bind(model, forwards, mesh.axes, compile_forwards=compile_forwards, recompute=levels)
    return mesh, orders


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Eight sequences; the targets to ignore are spread unevenly."""
    random = torch.Generator().manual_seed(step)
    tokens, targets = torch.randint(0, VOCABULARY, (2, 8, 5), generator=random)
    targets[torch.rand(8, 5, generator=random) < torch.linspace(0, 0.9, 8)[:, None]] = -100
    return tokens, targets


def my_part(tensor: Tensor, axes: dict[str, Axis]) -> Tensor:
    for name in DATA_AXES:
        tensor = tensor.chunk(axes[name].size)[axes[name].index]
    return tensor
