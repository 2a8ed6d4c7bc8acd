"""What fused kernels move and what is kept, of the blocks of a Llama and a GPT."""

from __future__ import annotations

from functools import cache

import pytest

from autopar.capture.biases import without_biases
from autopar.capture.precision import capture_in
from autopar.models import parse_model
from autopar.planner.execution import Execution
from autopar.planner.flow import Flow
from autopar.planner.fusion import Fusion
from autopar.planner.kept import Kept

MODELS = {
    "llama": "llama:layers=2,hidden=64,heads=4,kv_heads=2,ffn=128,vocab=256",
    "gpt": "gpt:layers=2,hidden=64,heads=4,vocab=256",
}


@cache
def fusion(model: str, execution: Execution, segment: str = "Block") -> Fusion:
    built = parse_model(MODELS[model]).build(global_batch=2, seq_len=16)
    graph = without_biases(capture_in("bf16", built.module, built.args, built.kwargs))
    chosen = next(each for each in graph.types if each.name.endswith(segment))
    return Fusion(Kept(Flow(chosen), execution))


COMPILED, EAGER = Execution(is_compiled=True), Execution()


def test_a_compiled_llama_block_keeps_what_inductor_saves() -> None:
    """12·T·d + 4·T·k + 6·T·ffn bytes and statistics: the residual, both norms, q, k, v, attention, gate, up."""
    kept = fusion("llama", COMPILED).kept
    tokens, hidden, keys, ffn = 32, 64, 32, 128
    activations = [name for name in kept.across if name in kept.flow.trained]
    expected = tokens * (12 * hidden + 4 * keys + 6 * ffn)
    assert sum(kept.flow.bytes(name) for name in activations) == expected


def test_a_gpt_block_keeps_the_input_of_its_gelu_and_its_result() -> None:
    kept = fusion("gpt", COMPILED).kept
    assert {"up_product", "gelu_1", "norm_1", "norm_2"} <= kept.across


@pytest.mark.parametrize("execution", [COMPILED, EAGER], ids=["compiled", "eager"])
@pytest.mark.parametrize("model", MODELS)
def test_each_level_keeps_less_and_runs_more_again(model: str, execution: Execution) -> None:
    sizes, again = [], []
    for level in ("none", "selective", "full"):
        kept = fusion(model, Execution(execution.is_compiled, level)).kept
        sizes.append(sum(kept.flow.bytes(name) for name in kept.across))
        again.append(len(kept.run_again))
    assert sizes[0] > sizes[1] > sizes[2]
    assert again[0] == 0 < again[1] < again[2]


def test_the_last_product_of_a_block_is_not_run_again() -> None:
    kept = fusion("llama", Execution(True, "full")).kept
    names = {kept.flow.calls[place].operator.name for place in kept.run_again}
    assert "down" not in names
    assert {"q", "gate", "up"} <= names


def test_a_compiled_llama_block_runs_six_fused_kernels_forward() -> None:
    """Two norms (the second with the residual), two rotations, the gate and the last residual."""
    found = fusion("llama", COMPILED)
    pointwise = [t for t in found.traffic.values() if t.family not in ("matmul", "attention", "free")]
    assert sum(traffic.kernels for traffic in pointwise) == 6


def test_gradients_that_meet_are_read_by_the_kernel_that_makes_the_next() -> None:
    """q, k and v leave three gradients of the first norm, gate and up two of the second."""
    found = fusion("llama", COMPILED).traffic
    assert found["norm_1"].gradient_reads == ((0, 3),)
    assert found["norm_2"].gradient_reads == ((0, 2),)


def test_a_residual_passes_its_gradient_on_without_a_kernel() -> None:
    assert fusion("llama", COMPILED).traffic["add_4"].backward_kernels == 0


def test_logits_are_read_once_by_a_compiled_loss() -> None:
    found = fusion("gpt", COMPILED, "Root1").traffic
    assert found["cross_entropy_loss_1"].reads == (1,)
    assert sum(len(t.reads) for name, t in found.items() if name == "flatten_1_wide") == 1
    assert fusion("gpt", EAGER, "Root1").traffic["cross_entropy_loss_1"].family == "log_softmax"
