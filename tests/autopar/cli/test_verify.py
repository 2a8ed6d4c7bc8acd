"""How gradients are compared: norm-wise, by parameter, zero gradients held against the others."""

from __future__ import annotations

import sys

import pytest
import torch

from autopar.cli.verify import gradient_errors


def test_equal_gradients_have_no_error() -> None:
    gradients = {"a": torch.ones(3, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    assert gradient_errors(gradients, gradients) == {"a": 0.0, "b": 0.0}


def test_error_is_the_norm_of_the_difference_over_the_norm() -> None:
    wanted = {"a": torch.tensor([3.0, 4.0], dtype=torch.float64)}
    given = {"a": torch.tensor([3.0, 4.5], dtype=torch.float64)}
    assert gradient_errors(given, wanted)["a"] == pytest.approx(0.1)


def test_rounding_of_a_zero_gradient_is_no_error() -> None:
    wanted = {"a": torch.ones(100, dtype=torch.float64), "zero": torch.full((4,), 1e-12, dtype=torch.float64)}
    given = {"a": torch.ones(100, dtype=torch.float64), "zero": torch.full((4,), 2e-9, dtype=torch.float64)}
    assert gradient_errors(given, wanted)["zero"] < 1e-5


def test_a_missing_gradient_is_a_whole_error() -> None:
    wanted = {"a": torch.ones(4, dtype=torch.float64)}
    assert gradient_errors({}, wanted)["a"] == pytest.approx(1.0)


def test_what_is_not_finite_is_the_largest_error() -> None:
    wanted = {"a": torch.ones(4, dtype=torch.float64)}
    given = {"a": torch.full((4,), torch.nan, dtype=torch.float64)}
    assert gradient_errors(given, wanted)["a"] == sys.float_info.max
