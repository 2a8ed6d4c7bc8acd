"""What cannot be captured is refused with the user's line and the next step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autopar.capture import capture
from autopar.errors import CaptureError

X = torch.ones(3)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x.sum()
        return -x.sum()


class Reading(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.sum())


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum()


class Casting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return (x @ x).sum()


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("no such thing")


class Mismatched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x @ torch.ones(4, 4)).sum()


class Returning(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x.sum(), 3


@pytest.mark.parametrize(
    ("module", "line", "words"),
    [
        (Branching(), "if x.sum() > 0:", "torch.where"),
        (Reading(), "return x * float(x.sum())", "depends on the values"),
        (Selecting(), "return x[x > 0].sum()", "Use a mask or torch.where"),
        (Casting(), "return (x @ x).sum()", "choose the precision of the plan"),
        (Failing(), 'raise ValueError("no such thing")', "ValueError: no such thing"),
        (Mismatched(), "return (x @ torch.ones(4, 4)).sum()", "RuntimeError"),
    ],
)
def test_the_line_and_the_next_step_are_named(module: nn.Module, line: str, words: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(module, (X,))
    assert "test_capture_errors.py:" in str(caught.value)
    assert line in str(caught.value)
    assert words in str(caught.value)


def test_outputs_are_tensors() -> None:
    with pytest.raises(CaptureError, match="returns 3 beside tensors"):
        capture(Returning(), (X,))


def test_a_loose_tensor_on_meta_is_named_as_the_cause() -> None:
    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, device="meta"))
            self.scale = torch.ones(3, device="meta")

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.weight * self.scale).sum()

    module = Loose()
    with pytest.raises(CaptureError, match="register_buffer"):
        capture(module, (X,))
    assert module.weight.is_meta


def test_a_large_tensor_that_is_no_buffer_is_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.zeros(1000, 1000)

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.table[0, 0]).sum()

    with pytest.raises(CaptureError, match=r"'table'.*register_buffer"):
        capture(Table(), (X,))


def test_modes_and_parameters_are_restored_after_a_failure() -> None:
    class Late(Failing):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, device="meta"))

    module = Late().eval()
    before = module.weight
    with pytest.raises(CaptureError):
        capture(module, (X,))
    assert module.weight is before
    assert not module.training
