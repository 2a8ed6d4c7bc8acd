"""Work of one transformer block, of its loss head and embedding, in the shapes of one rank."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cost_models.operators import Work

__all__ = [
    "BlockShape",
    "Kernels",
    "TransformerShape",
    "attention_work",
    "block_backward",
    "block_forward",
    "head_work",
    "optimizer_work",
]


@dataclass(frozen=True, slots=True)
class TransformerShape:
    """A decoder as papers describe it."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    has_gated_mlp: bool = False
    """Gate and up projections (SwiGLU), not one."""
    has_rotary: bool = False
    """Queries and keys are rotated by position."""
    has_tied_head: bool = True
    """Embedding and loss head share their weight."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.heads

    @property
    def kv_hidden(self) -> int:
        """Width of all keys, and of all values."""
        return self.head_dim * self.kv_heads

    @property
    def block_weights(self) -> int:
        """Weights of the matrix products of one block."""
        up = 2 if self.has_gated_mlp else 1
        return self.hidden * (2 * self.hidden + 2 * self.kv_hidden + (up + 1) * self.ffn)

    @property
    def parameters(self) -> int:
        """Weights of blocks, embedding and head; norms, biases and positions left out."""
        embeddings = 1 if self.has_tied_head else 2
        return self.layers * self.block_weights + embeddings * self.vocab * self.hidden


@dataclass(frozen=True, slots=True)
class Kernels:
    """Which kernels a program runs."""

    attention: str = "flash"
    """``flash`` (scores never written) or ``unfused`` (scores in memory)."""
    attention_slowdown: float = 1.0
    """How much slower the program's fused attention is than the one of the device profile: older versions."""
    has_dropout: bool = False
    """Dropout on attention scores and residuals, as GPT was trained."""
    has_biases: bool = False
    """Linear layers with bias: added together with what follows, and summed in backward."""
    logit_bytes: tuple[float, float] = (2.0, 4.0)
    """Bytes moved per logit by the loss, forward and backward; fused as Inductor does it unless given."""

    def __post_init__(self) -> None:
        if self.attention not in ("flash", "unfused"):
            raise ValueError(f"unknown attention {self.attention!r}: known are flash, unfused")


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What one rank computes of a block, for one microbatch."""

    shape: TransformerShape
    sequences: int
    """Sequences of the microbatch."""
    seq: int
    """Length of a sequence."""
    dtype: str
    tensor_ranks: int = 1
    """Ranks that split heads, ffn and vocabulary."""
    context_ranks: int = 1
    """Ranks that split the sequence throughout."""
    splits_norms: bool = False
    """Norms and residuals are split over the tensor ranks too (sequence parallelism)."""

    @property
    def tokens(self) -> int:
        """Tokens of matrix products."""
        return self.sequences * self.seq // self.context_ranks

    @property
    def norm_tokens(self) -> float:
        """Tokens of norms and residuals."""
        return self.tokens / self.tensor_ranks if self.splits_norms else float(self.tokens)


def block_forward(block: BlockShape, kernels: Kernels) -> list[Work]:
    """One forward pass through one block."""
    return [
        *_norms(block, kernels),
        *(_product(block, columns, rows) for columns, rows in _weights(block)),
        *attention_work(block, kernels),
        *_rotary(block),
        _activation(block, passes=3 if block.shape.has_gated_mlp else 2),
    ]


def block_backward(block: BlockShape, kernels: Kernels) -> list[Work]:
    """One backward pass: two products per weight, recomputation not included."""
    products = [_product(block, columns, rows) for columns, rows in _weights(block)]
    return [
        *_norms_backward(block, kernels),
        *(replace(work, n=work.k, k=work.n) for work in products),
        *(replace(work, m=work.n, n=work.k, k=work.m) for work in products),
        *attention_work(block, kernels, is_backward=True),
        *_rotary(block),
        _activation(block, passes=5 if block.shape.has_gated_mlp else 3),
        *(_bias_gradients(block) if kernels.has_biases else ()),
    ]


def head_work(block: BlockShape, kernels: Kernels, *, is_backward: bool = False) -> list[Work]:
    """Logits and cross-entropy of one microbatch."""
    shape, tokens = block.shape, block.tokens
    vocab = shape.vocab // block.tensor_ranks
    logits = _product(block, vocab, shape.hidden)
    loss_bytes = kernels.logit_bytes[is_backward] * tokens * vocab
    family = "cross_entropy_backward" if is_backward else "cross_entropy"
    loss = Work(family, 0.0, loss_bytes / 2, loss_bytes / 2, block.dtype)
    if not is_backward:
        return [logits, loss]
    return [
        loss,
        replace(logits, n=logits.k, k=logits.n),
        replace(logits, m=logits.n, n=logits.k, k=logits.m),
    ]


def optimizer_work(parameters: float, *, bytes_per_parameter: float = 28.0) -> Work:
    """One Adam step: by default parameter, gradient and two moments read, three of them written."""
    moved = parameters * bytes_per_parameter
    return Work("optimizer", 0.0, moved * 4 / 7, moved * 3 / 7, "float32")


def attention_work(block: BlockShape, kernels: Kernels, *, is_backward: bool = False) -> list[Work]:
    """Causal attention of one microbatch, without its projections."""
    if kernels.attention == "unfused":
        return _unfused_attention(block, kernels, is_backward=is_backward)
    heads = block.shape.heads // block.tensor_ranks
    width = heads * block.shape.head_dim
    flops = 0.5 * (10.0 if is_backward else 4.0) * block.tokens * block.seq * width
    moved = 2.0 * block.tokens * (width + 2 * block.shape.kv_hidden / block.tensor_ranks)
    return [
        Work(
            "attention_backward" if is_backward else "attention",
            flops * kernels.attention_slowdown,
            moved,
            2.0 * block.tokens * width,
            block.dtype,
            heads=heads,
            seq=block.seq,
            head_dim=block.shape.head_dim,
            queries=block.tokens * heads,
        )
    ]


def _weights(block: BlockShape) -> list[tuple[int, int]]:
    """(out-features, in-features) of each weight on this rank: qkv, projection, up, down."""
    shape, ranks = block.shape, block.tensor_ranks
    up = 2 if shape.has_gated_mlp else 1
    return [
        ((shape.hidden + 2 * shape.kv_hidden) // ranks, shape.hidden),
        (shape.hidden, shape.hidden // ranks),
        (up * shape.ffn // ranks, shape.hidden),
        (shape.hidden, shape.ffn // ranks),
    ]


def _product(block: BlockShape, columns: int, rows: int) -> Work:
    return _matmul(block.tokens, columns, rows, block.dtype)


def _matmul(m: int, n: int, k: int, dtype: str, batch: int = 1) -> Work:
    return Work(
        "matmul",
        2.0 * batch * m * n * k,
        2.0 * batch * (m * k + k * n),
        2.0 * batch * m * n,
        dtype,
        m=m,
        n=n,
        k=k,
        batch=batch,
    )


def _norms(block: BlockShape, kernels: Kernels) -> list[Work]:
    """Two norms and two residual additions, at 2 B an element; dropout adds a mask of 1 B."""
    elements = block.norm_tokens * block.shape.hidden
    mask = elements if kernels.has_dropout else 0.0
    norm = Work("norm", 0.0, 2 * elements, 2 * elements, block.dtype)
    residual = Work("elementwise", 0.0, 4 * elements, 2 * elements + mask, block.dtype)
    return [norm, residual, norm, residual]


def _norms_backward(block: BlockShape, kernels: Kernels) -> list[Work]:
    elements = block.norm_tokens * block.shape.hidden
    mask = elements if kernels.has_dropout else 0.0
    norm = Work("norm_backward", 0.0, 4 * elements, 2 * elements, block.dtype)
    residual = Work("elementwise", 0.0, 4 * elements + mask, 2 * elements, block.dtype)
    return [norm, residual, norm, residual]


def _rotary(block: BlockShape) -> list[Work]:
    """Queries and keys read and written once."""
    if not block.shape.has_rotary:
        return []
    moved = 2.0 * block.tokens * (block.shape.hidden + block.shape.kv_hidden) / block.tensor_ranks
    return [Work("rotary", 0.0, moved, moved, block.dtype)]


def _activation(block: BlockShape, passes: int) -> Work:
    """GELU, or SiLU and product: ``passes`` tensors of ffn width read or written."""
    elements = block.tokens * block.shape.ffn / block.tensor_ranks
    return Work("activation", 0.0, 2 * elements * (passes - 1), 2 * elements, block.dtype)


def _bias_gradients(block: BlockShape) -> list[Work]:
    return [
        Work("reduction", 0.0, 2.0 * block.tokens * columns, 0.0, block.dtype)
        for columns, _ in _weights(block)
    ]


def _unfused_attention(block: BlockShape, kernels: Kernels, *, is_backward: bool) -> list[Work]:
    """Batched products with the scores in memory between them; the masked half is computed, but not read."""
    shape = block.shape
    heads = block.sequences * shape.heads // block.tensor_ranks
    queries = block.seq // block.context_ranks
    scores = 2.0 * heads * queries * block.seq
    softmax = Work("elementwise", 0.0, scores * (1.0 if is_backward else 0.5), scores, block.dtype)
    dropout = (
        [Work("elementwise", 0.0, scores * 1.25, scores * 1.25, block.dtype)] if kernels.has_dropout else []
    )
    into = _matmul(queries, block.seq, shape.head_dim, block.dtype, heads)
    out_of = _matmul(queries, shape.head_dim, block.seq, block.dtype, heads)
    head_bytes = 2.0 * block.tokens * shape.hidden / block.tensor_ranks
    transposes = Work("copy", 0.0, 4 * head_bytes, 4 * head_bytes, block.dtype, kernels=4)
    products = [into, out_of] * (2 if is_backward else 1)
    return [*products, softmax, *dropout, transposes]
