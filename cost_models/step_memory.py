"""Peak bytes of one training step of a transformer, by category, in closed form.

What Inductor saves of a block was read off compiled Llama- and GPT-like blocks on H100 and H200 (torch 2.11,
2026), where these forms came within −0.5 to +2 % of the measured peak on one device. How they divide over
tensor ranks is derived: what each operator saves is split as its operands are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cost_models.device import Device
from cost_models.memory import ParameterBytes, at_rest, overhead_bytes
from cost_models.schedules import microbatches_in_flight
from cost_models.training_step import Configuration
from cost_models.transformer import BlockShape, TransformerShape

__all__ = ["StepMemory", "block_saved_bytes", "head_bytes", "step_memory"]

_PRECISION = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes on the fullest device at the step's peak."""

    parameters: float
    """Master weights at rest."""
    gradients: float
    optimizer: float
    activations: float
    """Saved for backward, of all microbatches in flight."""
    temporaries: float
    """Loss head, and parameters gathered or recomputed for one block."""
    overhead: float
    """Context and communication buffers."""

    @property
    def total(self) -> float:
        """All categories together."""
        return float(sum(getattr(self, category.name) for category in fields(self)))


def block_saved_bytes(block: BlockShape, recompute: str = "none") -> float:
    """Bytes that one block keeps from the forward to the backward of one microbatch, computing at 16 bits.

    With T tokens, d hidden, k = key/value heads × head dim, h heads, p weights of products:
    gated MLP 14·T·d + 4·T·k + 6·T·ffn + 4·T·h + 8·T + 2·p, else 18·T·d + 4·T·ffn + 4·T·h + 16·T + 2·p
    (34·T·d at ffn = 4·d; 2·p are the 16-bit copies of the weights). Full recomputation keeps 4·T·d; selective
    drops the attention core's output and statistics.
    """
    shape, ranks = block.shape, block.tensor_ranks
    width = block.norm_tokens * shape.hidden
    if recompute == "full":
        return 4.0 * width
    inner, outer = _saved_parts(block)
    if recompute == "selective":
        inner -= block.tokens * (2.0 * shape.hidden + 4.0 * shape.heads)
    return outer + inner / ranks + 2.0 * shape.block_weights / ranks


def _saved_parts(block: BlockShape) -> tuple[float, float]:
    """(split over tensor ranks, split only with the norms) of what a block saves, weights left out."""
    shape, tokens = block.shape, float(block.tokens)
    statistics = 4.0 * tokens * shape.heads
    if shape.has_gated_mlp:
        inner = tokens * (4.0 * shape.hidden + 4.0 * shape.kv_hidden + 6.0 * shape.ffn) + statistics
        return inner, block.norm_tokens * (10.0 * shape.hidden + 8.0)
    inner = tokens * (8.0 * shape.hidden + 4.0 * shape.ffn) + statistics
    return inner, block.norm_tokens * (10.0 * shape.hidden + 16.0)


def head_bytes(block: BlockShape) -> float:
    """Peak of the loss head's backward: 2·T·d + 2·T·V + 4·V·d + 12·T; float32 logits are never written."""
    tokens, vocab = float(block.tokens), block.shape.vocab / block.tensor_ranks
    return tokens * (2.0 * block.shape.hidden + 2.0 * vocab + 12.0) + 4.0 * vocab * block.shape.hidden


def step_memory(
    shape: TransformerShape,
    configuration: Configuration,
    device: Device,
    *,
    optimizer: str = "adamw",
    communicators: int = 0,
) -> StepMemory:
    """Memory at the step's peak, on the first stage (most microbatches in flight) or the last (loss head)."""
    moments = [
        _moment(shape, configuration, optimizer, float(overhead_bytes(device, communicators)), stage, is_end)
        for stage in sorted({0, configuration.pp - 1})
        for is_end in (False, True)
    ]
    return max(moments, key=lambda memory: memory.total)


def _moment(
    shape: TransformerShape,
    configuration: Configuration,
    optimizer: str,
    overhead: float,
    stage: int,
    is_end: bool,
) -> StepMemory:
    """One stage when its backward starts, or (``is_end``) when its last gradient is done."""
    block = _block(shape, configuration)
    each = at_rest(_PRECISION[configuration.dtype], optimizer)
    parameters = _stage_parameters(shape, configuration, stage)
    sharded = parameters / (configuration.zero_ranks or configuration.dp)
    has_gradients = is_end or configuration.microbatches > 1
    in_flight = 0.0 if is_end else _in_flight(configuration, stage)
    return StepMemory(
        parameters=each.master * (sharded if configuration.zero_stage >= 2 else parameters),
        gradients=each.gradient * (sharded if configuration.zero_stage >= 2 else parameters) * has_gradients,
        optimizer=each.optimizer * (sharded if configuration.zero_stage >= 1 else parameters),
        activations=in_flight * _microbatch_bytes(shape, configuration, block),
        temporaries=_temporaries(shape, configuration, stage, is_end)
        + _gathered(shape, configuration, each, parameters),
        overhead=overhead,
    )


def _temporaries(shape: TransformerShape, configuration: Configuration, stage: int, is_end: bool) -> float:
    """The loss head on the last stage, or what one recomputed block saves again."""
    block = _block(shape, configuration)
    has_head = stage == configuration.pp - 1 and not is_end
    recomputed = block_saved_bytes(block) if configuration.recompute != "none" else 0.0
    return max(head_bytes(block) if has_head else 0.0, recomputed)


def _gathered(
    shape: TransformerShape, configuration: Configuration, each: ParameterBytes, parameters: float
) -> float:
    """Parameters gathered from their shards (two blocks, or all that are kept), and one block's gradients."""
    block_weights = shape.block_weights / configuration.tp
    working = each.working or each.master
    if configuration.zero_stage < 2:
        return 0.0
    kept = parameters if configuration.zero_stage == 2 else 2.0 * block_weights
    return working * kept + each.gradient * block_weights


def _block(shape: TransformerShape, configuration: Configuration) -> BlockShape:
    return BlockShape(
        shape,
        configuration.microbatch,
        configuration.seq,
        configuration.dtype,
        configuration.tp,
        configuration.cp,
        configuration.is_sequence_parallel,
    )


def _stage_parameters(shape: TransformerShape, configuration: Configuration, stage: int) -> float:
    """Parameters on one rank of a stage, whole: its blocks, the embedding first, the head last."""
    tables = int(stage == 0) + int(stage == configuration.pp - 1)
    if configuration.pp == 1 and shape.has_tied_head:
        tables = 1
    blocks = shape.layers * shape.block_weights / configuration.pp
    return (blocks + tables * shape.vocab * shape.hidden) / configuration.tp


def _in_flight(configuration: Configuration, stage: int) -> float:
    return microbatches_in_flight(
        configuration.schedule if configuration.pp > 1 else "1f1b",
        stages=configuration.pp,
        stage=stage,
        microbatches=configuration.microbatches,
        chunks=configuration.chunks,
    )


def _microbatch_bytes(shape: TransformerShape, configuration: Configuration, block: BlockShape) -> float:
    """Saved by all blocks of a stage for one microbatch, and the stage's input."""
    blocks = shape.layers / configuration.pp
    stage_input = 4.0 * block.norm_tokens * shape.hidden
    return stage_input + blocks * block_saved_bytes(block, configuration.recompute)
