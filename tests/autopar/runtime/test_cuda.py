"""On a GPU: sharded attention takes the fast causal kernels, eager and compiled, and is right."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from autopar.runtime import Axis, attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOLERANCE = {torch.bfloat16: 3e-2, torch.float16: 4e-3, torch.float32: 2e-3}
"""Of the largest element, against float64."""


def run(q: Tensor, k: Tensor, v: Tensor, axis: Axis, enable_gqa: bool) -> Tensor:
    return attention(q, k, v, query_axes=(axis,), is_causal=True, enable_gqa=enable_gqa)


@pytest.mark.parametrize("mode", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("heads", [(8, 8), (8, 2)], ids=str)
@pytest.mark.parametrize("index", [0, 1, 3])
def test_causal_attention_of_a_shard(mode, dtype, heads, index):
    torch.manual_seed(0)
    torch._dynamo.reset()
    axis = Axis("cp", 4, index, "")
    q, k, v = (
        torch.randn(2, count, 512, 64, device="cuda").to(dtype) for count in (heads[0], heads[1], heads[1])
    )
    exact = [x.double().requires_grad_() for x in (q, k, v)]
    repeated = [exact[0], *(x.repeat_interleave(heads[0] // heads[1], 1) for x in exact[1:])]
    wanted = F.scaled_dot_product_attention(*repeated, is_causal=True).chunk(4, 2)[index]
    gradient = torch.randn_like(wanted)
    wanted.backward(gradient)
    mine = [
        q.chunk(4, 2)[index].clone().requires_grad_(),
        k.clone().requires_grad_(),
        v.clone().requires_grad_(),
    ]
    function = torch.compile(run, fullgraph=True) if mode == "compiled" else run
    result = function(*mine, axis, heads[0] != heads[1])
    result.backward(gradient.to(dtype))
    expected = (wanted, exact[0].grad.chunk(4, 2)[index], exact[1].grad, exact[2].grad)
    for actual, right in zip((result, *(x.grad for x in mine)), expected, strict=True):
        assert (actual.double() - right).abs().max() < TOLERANCE[dtype] * right.abs().max()


def test_no_mask_is_held_in_memory():
    """16,384 queries of 32,768 keys: a mask would hold 512 MiB as booleans."""
    q, k, v = (
        torch.randn(1, 1, length, 64, device="cuda", dtype=torch.bfloat16) for length in (16384, 32768, 32768)
    )
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(q, k, v, Axis("cp", 2, 1, ""), False)
    assert torch.cuda.max_memory_allocated() - before < 64 * 2**20
