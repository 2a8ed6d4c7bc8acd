"""Models from users' files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autopar.errors import ModelError
from autopar.models import parse_model

GOOD = """
import torch
from torch import nn
from sizes import WIDTH

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 1)

    def forward(self, x, y):
        return (self.linear(x) - y).pow(2).mean()

def factory():
    return Net(), (torch.randn(6, WIDTH), torch.randn(6, 1))

def keywords():
    return Net(), {"y": torch.randn(6, 1), "x": torch.randn(6, WIDTH)}

def needs_values():
    width = int(torch.linspace(1, WIDTH, 2)[1].item())
    return Net(), [torch.ones(6, width), torch.ones(6, 1)]

def loose():
    net = Net()
    net.scale = torch.full((1,), 3.0)
    return net, (torch.randn(6, WIDTH), torch.randn(6, 1))

def raises():
    sizes = {}
    return sizes["missing"]

def exits():
    raise SystemExit(3)

def number():
    return 3

def no_inputs():
    return Net(), 5

no_function = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "sizes.py").write_text("WIDTH = 4\n")
    path = tmp_path / "net.py"
    path.write_text(GOOD)
    return path


def test_a_factory_makes_module_and_inputs(file: Path) -> None:
    built = parse_model(f"{file}:factory").build()
    assert type(built.module).__name__ == "Net"
    assert built.global_batch == built.tokens == 6
    assert all(each.is_meta for each in (*built.module.parameters(), *built.args))


def test_equal_seeds_call_equal_factories(file: Path) -> None:
    first, again = (parse_model(f"{file}:keywords").build(device="cpu", seed=4) for _ in range(2))
    assert torch.equal(first.kwargs["x"], again.kwargs["x"])
    assert torch.equal(first.module.linear.weight, again.module.linear.weight)
    assert first.args == ()


@pytest.mark.parametrize("function", ["needs_values", "loose"])
def test_a_factory_that_needs_values_runs_on_the_cpu(file: Path, function: str) -> None:
    built = parse_model(f"{file}:{function}").build(device="meta")
    assert built.module.linear.weight.device.type == "cpu"


def test_the_batch_is_the_factorys(file: Path) -> None:
    assert parse_model(f"{file}:factory").build(global_batch=6).global_batch == 6
    with pytest.raises(ModelError, match="global batch of 6, not 8"):
        parse_model(f"{file}:factory").build(global_batch=8)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("raises", r'net\.py:31   return sizes\["missing"\]\nKeyError: \'missing\''),
        ("exits", "SystemExit: 3"),
        ("number", r"must return \(module, inputs\), not a int"),
        ("no_inputs", "returns a int as inputs"),
        ("no_function", "has no function 'no_function'"),
        ("factori", "did you mean 'factory'"),
    ],
)
def test_what_went_wrong_is_named_with_its_line(file: Path, function: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_model(f"{file}:{function}").build()


def test_files_that_are_missing_or_broken(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("x = 1\ndef f(:\n    pass\n")
    failing = tmp_path / "failing.py"
    failing.write_text("import not_a_module_of_anybody\n")
    with pytest.raises(ModelError, match=r"broken\.py:2   def f\(:"):
        parse_model(f"{broken}:f").build()
    with pytest.raises(
        ModelError, match=r"failing\.py:1   import not_a_module_of_anybody\nModuleNotFoundError"
    ):
        parse_model(f"{failing}:f").build()
    with pytest.raises(ModelError, match="there is no file"):
        parse_model(f"{tmp_path}/nowhere.py:f").build()
    with pytest.raises(ModelError, match="name the function"):
        parse_model(f"{tmp_path}/nowhere.py")
