"""Products of odd widths: the padded one is the plain one, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from autopar.runtime.products import aligned_linear


@pytest.mark.parametrize("columns", [5, 8, 250, 4097])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_padded_product_and_its_gradients_are_the_plain_ones(columns: int, has_bias: bool) -> None:
    torch.manual_seed(columns)
    x, weight = torch.randn(3, 4, 16, dtype=torch.float64), torch.randn(columns, 16, dtype=torch.float64)
    bias = torch.randn(columns, dtype=torch.float64) if has_bias else None
    leaves = [each.requires_grad_() for each in (x, weight, bias) if each is not None]
    plain, padded = F.linear(x, weight, bias), aligned_linear(x, weight, bias)
    torch.testing.assert_close(padded, plain)
    gradient = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, leaves, gradient)
    found = torch.autograd.grad(padded, leaves, gradient)
    for each, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(each, wanted)


@pytest.mark.parametrize(("columns", "stride"), [(5, 8), (250, 256), (4097, 4160), (50_257, 50_304)])
def test_rows_of_16_bit_results_begin_at_multiples_of_16_bytes(columns: int, stride: int) -> None:
    x, weight = torch.randn(2, 8, dtype=torch.bfloat16), torch.randn(columns, 8, dtype=torch.bfloat16)
    assert aligned_linear(x, weight).stride() == (stride, 1)
