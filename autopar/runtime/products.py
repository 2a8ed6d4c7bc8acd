"""A linear layer whose rows would be of an odd number of bytes.

Tensor cores are fed by 16 bytes at a time: cuBLAS computes a product with a 16-bit operand or result whose rows
begin elsewhere at a sixth of the speed (50,257 columns on an H100: 93 instead of 714 TFLOP/s). Inductor pads such
products where its own timing says so, which makes memory a matter of luck; here it is a matter of the plan.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["aligned_linear"]

ROW_BYTES = 16
WIDE_ROW_BYTES = 128
"""What a tensor core's copy takes at once; wide results are padded to this."""
WIDE = 64
"""A result of so many wide rows is wide: the padding is less than 2 % of it."""


def aligned_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``, computed with as many more rows of ``weight`` as its result needs to be aligned.

    ``x`` (…, in), ``weight`` (out, in), ``bias`` (out); the result (…, out) is a view of a wider tensor.
    """
    rows = weight.shape[0]
    missing = -rows % _multiple(rows, weight.element_size())
    if not missing:
        return F.linear(x, weight, bias)
    wide = F.linear(x, F.pad(weight, (0, 0, 0, missing)), None if bias is None else F.pad(bias, (0, missing)))
    return wide.narrow(-1, 0, rows)


def _multiple(rows: int, element_bytes: int) -> int:
    """Elements of which the padded row holds a multiple."""
    wide = WIDE_ROW_BYTES // element_bytes
    return wide if rows >= WIDE * wide else ROW_BYTES // element_bytes
