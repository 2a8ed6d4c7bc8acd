"""Repeated blocks become calls of one segment type; everything keeps a readable name."""

from __future__ import annotations

import keyword
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.capture import capture, fingerprint, interpret
from autopar.capture.graph import Graph, Ref
from tests.autopar.capture.sample_models import CASES


class Block(nn.Module):
    """Two linear layers around a residual."""

    def __init__(self, width: int = 4, inner: int = 6) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks in a list, run one after the other."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


def calls(graph: Graph) -> list[tuple[str, str]]:
    return [(each.type, each.module) for each in graph.calls]


def check(module: nn.Module, graph: Graph, *args: Any) -> None:
    assert torch.equal(module(*args), interpret(graph, module, args)[0])


def test_equal_blocks_share_a_type() -> None:
    module = Stack(Block(), Block(), Block())
    graph = capture(module, (X,))
    assert calls(graph) == [
        ("Block", "layers.0"),
        ("Block", "layers.1"),
        ("Block", "layers.2"),
        ("Root0", ""),
    ]
    assert [each.path for each in graph.types[0].parameters] == [
        "up.weight",
        "up.bias",
        "down.weight",
        "down.bias",
    ]
    assert graph.calls[1].arguments == graph.calls[0].results == ("layers_0",)
    check(module, graph, X)


def test_blocks_of_other_sizes_or_operators_have_types_of_their_own() -> None:
    class Gelu(Block):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(F.gelu(self.up(x)))

    module = Stack(Block(), Gelu(), Block(inner=8), Gelu(), Block())
    graph = capture(module, (X,))
    assert [kind for kind, _ in calls(graph)] == ["Block", "Gelu", "Block_1", "Gelu", "Block", "Root0"]
    check(module, graph, X)


def test_one_and_true_and_1_0_are_different_literals() -> None:
    class Scaled(Block):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor) -> Tensor:
            return torch.add(x, self.down(self.up(x)), alpha=self.scale)

    graph = capture(Stack(Scaled(2), Scaled(2.0), Scaled(2)), (X,))
    assert [kind for kind, _ in calls(graph)] == ["Scaled", "Scaled_1", "Scaled", "Root0"]


def test_a_frozen_block_is_another_type() -> None:
    module = Stack(Block(), Block(), Block())
    x = X.detach()
    for parameter in module.layers[0].parameters():
        parameter.requires_grad_(False)
    graph = capture(module, (x,))
    assert [kind for kind, _ in calls(graph)] == ["Block", "Block_1", "Block_2", "Root0"]
    assert not any(value.requires_grad for value in graph.types[0].values.values())


def test_a_block_called_twice_is_two_calls() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                for layer in self.layers:
                    x = layer(x)
            return x.sum()

    module = Recurrent()
    graph = capture(module, (X,))
    assert [where for _, where in calls(graph)] == ["layers.0", "layers.1", "layers.0", "layers.1", ""]
    assert len(graph.types) == 2
    check(module, graph, X)


def test_one_module_called_again_and_again_is_a_block() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(3):
                x = self.block(x)
            return x.sum()

    module = Shared()
    graph = capture(module, (X,))
    assert calls(graph) == [*[("Block", "block")] * 3, ("Root0", "")]
    check(module, graph, X)


def test_an_encoder_called_twice_is_cut_at_its_blocks() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Stack(Block(), Block())

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.encoder(x) * self.encoder(y)

    module = Siamese()
    graph = capture(module, (X, X))
    assert [where for _, where in calls(graph) if where] == ["encoder.layers.0", "encoder.layers.1"] * 2
    assert len({kind for kind, where in calls(graph) if where}) == 1
    check(module, graph, X, X)


def test_a_block_whose_operators_are_interleaved_stays_with_the_root() -> None:
    class Halves(Block):
        def first(self, x: Tensor) -> Tensor:
            return F.relu(self.up(x))

    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Halves(), Halves()])

        def forward(self, x: Tensor) -> Tensor:
            a, b = (layer.first(x) for layer in self.layers)
            a, b = (layer.down(h) for layer, h in zip(self.layers, (a, b), strict=True))
            return self.layers[0](a).sum() * self.layers[1](b).sum()

    module = Interleaved()
    graph = capture(module, (X,))
    check(module, graph, X)
    assert [where for _, where in calls(graph) if where] == ["layers.0", "layers.1"]


def test_blocks_in_a_sequential_count_and_leaves_do_not() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(Block(), Block())
            self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x)).sum()

    module = Inner()
    graph = capture(module, (X,))
    assert [where for _, where in calls(graph)] == ["body.0", "body.1", ""]
    assert [each.name for each in graph.types[-1].operators] == ["head_0", "head_1", "head_2", "sum_1"]
    check(module, graph, X)


def test_weights_tied_across_blocks_go_by_their_name_in_the_block() -> None:
    module = Stack(Block(), Block())
    module.layers[1].up.weight = module.layers[0].up.weight
    graph = capture(module, (X,))
    assert [kind for kind, _ in calls(graph)] == ["Block", "Block", "Root0"]
    alias = {each.name: each.alias_of for each in graph.parameters}
    assert alias["layers.1.up.weight"] == "layers.0.up.weight"
    assert alias["layers.0.up.weight"] is None
    check(module, graph, X)


def test_a_block_that_uses_a_parameter_from_outside_stays_with_the_root() -> None:
    class Borrower(Block):
        def forward(self, x: Tensor, scale: nn.Module | None = None) -> Tensor:
            return super().forward(x) * (1 if scale is None else scale.weight[0, 0])

    class Lending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([Borrower(), Borrower()])
            self.lent = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x), self.lent).sum()

    module = Lending()
    graph = capture(module, (X,))
    assert [where for _, where in calls(graph)] == ["layers.0", ""]
    check(module, graph, X)


def test_the_tied_head_refers_to_the_embedding() -> None:
    module, args, kwargs = CASES["gpt"]()
    graph = capture(module, args, kwargs)
    assert [each.path for each in graph.types[-1].parameters][-1] == "tokens.weight"
    assert {each.name: each.alias_of for each in graph.parameters}["head.weight"] == "tokens.weight"


@pytest.mark.parametrize("name", CASES)
def test_graphs_are_well_formed(name: str) -> None:
    """Names are unique and defined before use; types are used; calls fit their types."""
    module, args, kwargs = CASES[name]()
    graph = capture(module, args, kwargs)
    types = {each.name: each for each in graph.types}
    assert len(types) == len(graph.types)
    assert {each.type for each in graph.calls} == set(types)
    for kind in graph.types:
        known = {*kind.inputs, *(p.value for p in kind.parameters), *(c.value for c in kind.constants)}
        for operator in kind.operators:
            assert {ref.value for ref in references(operator.arguments)} <= known
            made = {each for each in operator.results if each}
            assert operator.name in made
            assert not made & known
            known |= made
        assert known == set(kind.values)
        assert set(kind.outputs) <= known
        assert all(each.isidentifier() and not keyword.iskeyword(each) for each in known)
        assert not known & {*dir(torch), *dir(F), "self", "F", "nn"}
    known = {each.value.name for each in graph.inputs}
    for call in graph.calls:
        assert len(call.arguments) == len(types[call.type].inputs)
        assert len(call.results) == len(types[call.type].outputs)
        assert set(call.arguments) <= known
        assert not set(call.results) & known
        known |= set(call.results)
    assert set(graph.outputs) <= known == set(graph.values)


def references(argument: Any) -> list[Ref]:
    if isinstance(argument, Ref):
        return [argument]
    return [ref for each in argument for ref in references(each)] if isinstance(argument, tuple) else []


def test_source_lines_are_the_users() -> None:
    module, args, kwargs = CASES["llama"]()
    sources = [each.source for kind in capture(module, args, kwargs).types for each in kind.operators]
    assert "llama.py:" in sources[0]
    assert all(each.startswith("llama.py:") for each in sources)
    assert any(each.endswith("   return self.down(F.silu(self.gate(x)) * self.up(x))") for each in sources)


def test_values_are_named_after_modules_and_operators() -> None:
    module, args, kwargs = CASES["gpt"]()
    kind = capture(module, args, kwargs).types[1]
    assert kind.inputs == ("x",)
    assert [each.name for each in kind.operators] == [
        *("norm_1", "q", "unflatten_1", "transpose_1", "k", "unflatten_2", "transpose_2"),
        *("v", "unflatten_3", "transpose_3", "scaled_dot_product_attention_1", "transpose_4", "flatten_1"),
        *("out", "add_1", "norm_2", "up", "gelu_1", "down", "add_2"),
    ]


def test_hostile_names_become_identifiers() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("import os; abort()", nn.Linear(4, 4))
            self.add_module("lambda", nn.Linear(4, 4))
            self.add_module("relu", nn.Linear(4, 4))
            self.__class__.__name__ = "x = 1; class Y"

        def forward(self, x: Tensor) -> Tensor:
            for each in self.children():
                x = each(x)
            return x.sum()

    module = Odd()
    graph = capture(module, (X,))
    assert [each.name for each in graph.types[0].operators] == [
        "import_os_abort",
        "lambda_1",
        "relu_1",
        "sum_1",
    ]
    check(module, graph, X)


def test_dropout_follows_the_training_flag() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dropout(x).sum()

    module = Dropping()
    graph = capture(module, (X,))
    torch.manual_seed(0)
    expected = module(X)
    torch.manual_seed(0)
    assert torch.equal(expected, interpret(graph, module, (X,))[0])
    assert torch.equal(interpret(graph, module.eval(), (X,))[0], X.sum())


@pytest.mark.parametrize("name", CASES)
def test_the_fingerprint_is_that_of_the_structure(name: str) -> None:
    module, args, kwargs = CASES[name]()
    graph = capture(module, args, kwargs)
    assert fingerprint(graph) == fingerprint(capture(module, args, kwargs))
    if not any(each.alias_of for each in graph.parameters):  # Module.to("meta") unties weights
        assert fingerprint(graph) == fingerprint(capture(module.to("meta"), args, kwargs))


def test_other_sizes_other_fingerprint() -> None:
    found = {
        fingerprint(capture(Stack(Block(), Block()), (X,))),
        fingerprint(capture(Stack(Block(), Block()), (X[:2],))),
        fingerprint(capture(Stack(Block(), Block(inner=8)), (X,))),
        fingerprint(capture(Stack(Block(), Block(), Block()), (X,))),
    }
    assert len(found) == 4


def test_outputs_may_be_packed_and_may_be_parameters() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"loss": (x * self.scale).sum(), "scale": self.scale, "x": x}

    graph = capture(Packed(), (X,))
    assert graph.output_tree != "tensor"
    loss, scale, x = interpret(graph, Packed(), (X,))
    assert torch.equal(loss, X.sum())
    assert scale.item() == 1.0
    assert torch.equal(x, X)
