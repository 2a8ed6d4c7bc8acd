"""A captured graph computes what its module computes."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from autopar.capture import capture, interpret
from tests.autopar.capture.sample_models import CASES


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def loss_of(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.loss  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_those_of_the_module(name: str) -> None:
    module, args, kwargs = CASES[name]()
    twin = copy.deepcopy(module)
    graph = capture(module, args, kwargs)

    loss = loss_of(module(*args, **kwargs))
    loss.backward()
    again = next(out for out in interpret(graph, twin, args, kwargs) if out.dim() == 0)
    again.backward()

    # Attention told is_causal rounds differently from attention with a mask.
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if graph.notes else {"rtol": 0.0, "atol": 0.0}
    torch.testing.assert_close(loss, again, **tolerance)
    for (parameter, mine), theirs in zip(module.named_parameters(), twin.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), parameter
        if mine.grad is not None:
            torch.testing.assert_close(mine.grad, theirs.grad, **tolerance)


@pytest.mark.parametrize("name", CASES)
def test_requires_grad_is_what_autograd_records(name: str) -> None:
    module, args, kwargs = CASES[name]()
    graph = capture(module, args, kwargs)
    recorded = interpret(graph, module, args, kwargs)
    for output, tensor in zip(graph.outputs, recorded, strict=True):
        assert graph.values[output].requires_grad == tensor.requires_grad
        assert graph.values[output].shape == tuple(tensor.shape)


def test_capture_leaves_the_module_alone() -> None:
    module, args, kwargs = CASES["GPT2LMHeadModel"]()
    module.eval()
    module.transformer.h[0].train()
    modes = {name: each.training for name, each in module.named_modules()}
    values = {name: (id(held), held.clone()) for name, held in module.named_parameters()}
    capture(module, args, kwargs)
    assert modes == {name: each.training for name, each in module.named_modules()}
    for name, held in module.named_parameters():
        assert values[name][0] == id(held)
        assert torch.equal(values[name][1], held)
        assert held.grad is None


def test_capture_does_not_touch_the_random_state() -> None:
    module, args, kwargs = CASES["gpt"]()
    before = torch.random.get_rng_state()
    capture(module, args, kwargs)
    assert torch.equal(before, torch.random.get_rng_state())


def test_one_tensor_given_twice_stays_two_inputs() -> None:
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a * self.weight - 2 * b).sum()

    same = torch.ones(3)
    graph = capture(Product(), (same, same))
    assert [each.path for each in graph.inputs] == ["0", "1"]
    (loss,) = interpret(graph, Product(), (torch.full((3,), 5.0), torch.ones(3)))
    assert loss.item() == 9.0


def test_keywords_are_told_apart_by_name() -> None:
    class Difference(nn.Module):
        def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
            return ((left.sum() - right.sum()) * scale).sum()

    given = {"right": torch.ones(3), "scale": 2.0, "left": torch.full((3,), 4.0)}
    graph = capture(Difference(), (), given)
    assert {each.path: each.value.name for each in graph.inputs} == {"right": "right", "left": "left"}
    assert interpret(graph, Difference(), (), given)[0].item() == 18.0


def test_inputs_may_be_nested() -> None:
    class Nested(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["x"].sum() * batch["y"].sum()

    batch = {"x": torch.ones(2), "y": torch.ones(3)}
    graph = capture(Nested(), (batch,))
    assert [(each.path, each.value.name) for each in graph.inputs] == [("0.x", "batch_x"), ("0.y", "batch_y")]
    assert interpret(graph, Nested(), (batch,))[0].item() == 6.0


def test_batch_norm_updates_its_statistics() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x).pow(2).sum()

    module, x = Normed(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    twin = copy.deepcopy(module)
    graph = capture(module, (x,))
    assert torch.equal(module(x), interpret(graph, twin, (x,))[0])
    for mine, theirs in zip(module.buffers(), twin.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_parts_in_eval_mode_stay_in_eval_mode() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.on, self.off = nn.Dropout(0.5), nn.Dropout(0.25).eval()

        def forward(self, x: Tensor) -> Tensor:
            return (self.on(x) + self.off(x)).sum()

    targets = [each.target for each in capture(Half(), (torch.ones(4),)).types[0].operators]
    assert targets.count("aten.dropout.default") == 1


def test_nothing_is_printed_when_export_fails() -> None:
    program = (
        "import torch\n"
        "from autopar.capture import capture\n"
        "class M(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return x if x.sum() > 0 else -x\n"
        "try:\n"
        "    capture(M(), (torch.ones(3),))\n"
        "except Exception as error:\n"
        "    print('raised')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("raised\n", "")
