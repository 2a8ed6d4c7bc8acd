"""Running one block of each kind gives the graph that running all of them gives, or is not done."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autopar.capture import capture, fingerprint
from autopar.capture.export import ready
from autopar.capture.forward import trace_once, trace_whole
from autopar.capture.graph import Graph
from autopar.capture.inputs import prepare
from autopar.capture.likeness import alike_blocks
from autopar.capture.outline import Outline
from autopar.capture.passes import graph_of
from autopar.capture.precision import capture_in
from autopar.models import parse_model
from tests.autopar.capture.sample_models import hugging_face

LAYERS = 6
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()


class Block(nn.Module):
    """Two linear layers around a residual."""

    def __init__(self, index: int = 0, width: int = 4) -> None:
        super().__init__()
        self.index = index
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks of a class in a list, run one after the other."""

    def __init__(self, block: Callable[[int], nn.Module] = Block, layers: int = LAYERS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(block(index) for index in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def both(module: nn.Module, args: tuple[Any, ...] = (X,), **kwargs: Any) -> tuple[Graph | None, Graph]:
    """The graph from one block of each kind (None where this is refused), and that from all of them."""
    example = prepare(module, args, kwargs)
    traced = trace_once(module, example)
    once = None if traced is None else graph_of(module, example, traced)
    return once, graph_of(module, example, trace_whole(module, example))


def blocks_run(module: nn.Module, args: tuple[Any, ...] = (X,)) -> int:
    """How many calls of blocks that have their like run all the same."""
    with ready(module, prepare(module, args, {})) as example:
        outline = Outline(module, alike_blocks(module))
        with outline.installed():
            torch.export.export(module, example.args, example.kwargs, strict=False)
        return outline.times.total() - outline.stand_ins


FAMILIES = {
    "gpt": "gpt:layers=6,hidden=32,heads=4,vocab=64",
    "gpt that drops": "gpt:layers=6,hidden=32,heads=4,vocab=64,dropout=0.1",
    "llama": "llama:layers=6,hidden=32,heads=4,kv_heads=2,vocab=64",
    "mlp": "mlp:layers=6,hidden=16",
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_run_once(name: str, device: str) -> None:
    built = parse_model(FAMILIES[name]).build(global_batch=4, seq_len=12, device=device)
    once, whole = both(built.module, built.args)
    assert once == whole
    assert fingerprint(whole) == fingerprint(capture(built.module, built.args))


TOKENS = torch.randint(64, (2, 12), generator=torch.Generator().manual_seed(1))
TEXT = {"input_ids": TOKENS, "labels": TOKENS}
SIZES = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "intermediate_size": 48}
NO_TOKENS = {"use_cache": False, "bos_token_id": 0, "eos_token_id": 0}
ENCODER_DECODER = {"vocab_size": 64, "d_model": 32, "use_cache": False, "decoder_start_token_id": 0}
HUGGING_FACE: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "GPT2LMHeadModel": ({"n_embd": 32, "n_layer": 5, "n_head": 4, "vocab_size": 64, **NO_TOKENS}, TEXT),
    "LlamaForCausalLM": ({**SIZES, "num_key_value_heads": 2, "vocab_size": 64, "use_cache": False}, TEXT),
    "BertForMaskedLM": (
        {**SIZES, "vocab_size": 64},
        {**TEXT, "attention_mask": (torch.arange(12) < torch.tensor([[12], [7]])).long()},
    ),
    "ViTForImageClassification": (
        {**SIZES, "image_size": 16, "patch_size": 8, "num_labels": 3},
        {"pixel_values": torch.ones(2, 3, 16, 16), "labels": torch.tensor([0, 2])},
    ),
    "T5ForConditionalGeneration": (
        {**ENCODER_DECODER, "d_kv": 8, "d_ff": 48, "num_layers": 5, "num_decoder_layers": 6, "num_heads": 4},
        TEXT,
    ),
    "WhisperForConditionalGeneration": (
        {
            **ENCODER_DECODER,
            **{f"{part}_layers": 5 for part in ("encoder", "decoder")},
            **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
            **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
            "num_mel_bins": 8,
            "max_source_positions": 12,
            "max_target_positions": 16,
            "pad_token_id": 0,
        },
        {"input_features": torch.ones(2, 8, 24), "labels": TOKENS},
    ),
    "MixtralForCausalLM": (
        {**SIZES, "num_key_value_heads": 2, "vocab_size": 64, "use_cache": False, "num_local_experts": 4},
        TEXT,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_transformers_are_run_once(name: str) -> None:
    sizes, inputs = HUGGING_FACE[name]
    once, whole = both(hugging_face(name, **sizes), (), **inputs)
    assert once == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_precision_is_run_once(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built = parse_model(FAMILIES["llama"]).build(global_batch=4, seq_len=12)
    once = capture_in(precision, built.module, built.args, {})
    monkeypatch.setattr("autopar.capture.passes.trace_once", lambda module, example: None)
    assert once == capture_in(precision, built.module, built.args, {})


# Models whose own forward does more than chain its blocks: it runs as it is, so one block is enough.


class Tapped(Stack):
    """Hands on what three of its blocks return, and weighs by the number of blocks."""

    def forward(self, x: Tensor) -> list[Tensor]:
        seen = []
        for place, layer in enumerate(self.layers):
            x = layer(x) / (2.0 if place == 4 else 1.0)
            if place in (1, 4):
                seen.append(x)
        return [*seen, x.sum() / len(self.layers)]


class Skips(Stack):
    """The first half's outputs go into the second half, last first."""

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for layer in self.layers[: LAYERS // 2]:
            x = layer(x)
            kept.append(x)
        for place in range(LAYERS // 2, LAYERS):
            x = self.layers[place](x + kept.pop())
        return x.sum()


class Backwards(Stack):
    """Every block twice, the second time in reverse."""

    def forward(self, x: Tensor) -> Tensor:
        for place in (*range(LAYERS), *reversed(range(LAYERS))):
            x = self.layers[place](x)
        return x.sum()


class Opened(Stack):
    """Calls a part of one block by itself."""

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.layers):
            x = layer.down(F.gelu(layer.up(x))) if place == 3 else layer(x)
        return x.sum()


class PartlyFrozen(Stack):
    """The first blocks run without gradients."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for layer in self.layers[:4]:
                x = layer(x)
        for layer in [*self.layers[4:], *self.layers[4:]]:
            x = layer(x)
        return x.sum()


class Pair(Block):
    """Takes and returns several things, one of them as it was."""

    def forward(  # type: ignore[override]
        self, pair: tuple[Tensor, Tensor], *, scale: float, mask: Tensor | None = None
    ) -> dict[str, Any]:
        x, y = pair
        return {"pair": (super().forward(x) * scale + y, y), "none": mask, "flag": True, "again": y}


class Pairs(Stack):
    def __init__(self) -> None:
        super().__init__(Pair)

    def forward(self, x: Tensor) -> Tensor:
        pair = (x, x * 2)
        for place, layer in enumerate(self.layers):
            pair = layer(pair, scale=0.5 if place < 3 else 0.25)["pair"]
        return pair[0].sum() + pair[1].sum()


class Same(Block):
    """Asks whether its arguments are one and the same."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) if x is y else super().forward(x) * y


class Sames(Stack):
    def __init__(self) -> None:
        super().__init__(Same)

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1
        for place, layer in enumerate(self.layers):
            x = layer(x, x if place % 2 else y)
        return x.sum()


class Asking(Stack):
    """Asks its blocks what they take."""

    def __init__(self) -> None:
        super().__init__(Same)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            takes_two = "y" in inspect.signature(layer.forward).parameters
            x = layer(x, x + 1) if takes_two else layer(x, x)
        return x.sum()


class Normed(Block):
    """Updates statistics, and drops."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(super().forward(self.norm(x)))


class InPlace(Block):
    """Writes to what it made."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(F.relu(self.up(x), inplace=True))
        x[:, 0] += 1
        x.view(-1)[:3].mul_(2)
        return x


class Frozen(Stack):
    def __init__(self) -> None:
        super().__init__()
        self.layers[2].requires_grad_(False)


class Tied(Stack):
    """Every block's first weight is the first block's."""

    def __init__(self) -> None:
        super().__init__()
        for layer in self.layers[1:]:
            layer.up.weight = self.layers[0].up.weight


class Half(Block):
    """Every second block is wider inside."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        if index % 2:
            self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)


class Windowed(Block):
    """Every second block adds another number, held as one."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.window = 2 if index % 2 else 7

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.window


class Nested(nn.Module):
    """Lists in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.ModuleList(Block(index) for index in range(4)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for group in self.groups:
            for layer in group:
                x = layer(x)
        return x.sum()


class Chained(nn.Module):
    """Blocks in a Sequential, and a list that is also known by another name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Block(index) for index in range(LAYERS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).sum()


class Masked(Block):
    """Makes a constant of its own, and is told another one."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x).masked_fill(mask, 0.0) * torch.tensor([1.0, 2.0, 3.0, 4.0])


class Masks(Stack):
    def __init__(self) -> None:
        super().__init__(Masked)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(3, 4).triu(1).bool()
        for layer in self.layers:
            x = layer(x, mask)
        return x.sum()


ONCE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "chain": (Stack, 1),
    "sequential": (Chained, 1),
    "taps": (Tapped, 1),
    "skips": (Skips, 1),
    "blocks called twice": (Backwards, 1),
    "a block taken apart": (Opened, 1),
    "blocks without gradients": (PartlyFrozen, 4),
    "several arguments": (Pairs, 2),
    "one argument twice": (Sames, 2),
    "signatures": (Asking, 1),
    "statistics": (lambda: Stack(Normed), 1),
    "in place": (lambda: Stack(InPlace), 1),
    "a frozen block": (Frozen, 1),
    "tied blocks": (Tied, 1),
    "two widths in turn": (lambda: Stack(Half, 8), 2),
    "two numbers in turn": (lambda: Stack(Windowed, 8), 2),
    "lists in lists": (Nested, 2),
    "constants": (Masks, 1),
}
"""Models, and how many of their blocks need to run."""


@pytest.mark.parametrize("name", ONCE)
def test_what_happens_between_blocks_is_seen(name: str) -> None:
    make, count = ONCE[name]
    once, whole = both(make())
    assert once is not None
    assert once == whole
    assert blocks_run(make()) == count


# Models whose blocks are not what they seem: all of their blocks run.


class Indexed(Block):
    """Computes with its number."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / (self.index + 1)


class Late(Block):
    """Only the fifth block is special."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2 if self.index == 4 else super().forward(x)


class Asks(Block):
    """Looks at its number in a way that no operator of Python shows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if isinstance(self.index, bool) else 3)


class Rated(Block):
    """Drops at a rate of its own."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.rate = 0.1 * index

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), self.rate, self.training)


class Remembers(Block):
    """Leaves something for its model on itself."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.extra: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.extra = (x * x).mean()
        return super().forward(x)


class Sums(Stack):
    def __init__(self) -> None:
        super().__init__(Remembers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + sum(layer.extra for layer in self.layers)


class Collects(Stack):
    """Its blocks write into a list that they were given when they were made."""

    def __init__(self) -> None:
        found: list[Tensor] = []

        class Collector(Block):
            def __init__(self, index: int) -> None:
                super().__init__(index)
                self.found = found

            def forward(self, x: Tensor) -> Tensor:
                found.append(x.mean())
                return super().forward(x)

        super().__init__(Collector)
        self.found = found

    def forward(self, x: Tensor) -> Tensor:
        self.found.clear()
        x = super().forward(x)
        return x + sum(self.found)


class Appends(Stack):
    """Its blocks write into a list that they are called with."""

    def __init__(self) -> None:
        class Appender(Block):
            def forward(self, x: Tensor, seen: list[Tensor]) -> Tensor:  # type: ignore[override]
                seen.append(x.mean())
                return super().forward(x)

        super().__init__(Appender)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for layer in self.layers:
            x = layer(x, seen)
        return x.sum() + sum(seen)


class Counts(Stack):
    """Its blocks are told apart by a counter that nobody holds."""

    def __init__(self) -> None:
        numbers = itertools.count(1)

        class Counter(Block):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + next(numbers) % LAYERS

        super().__init__(Counter)


class Neighbour(Block):
    """Computes with another block's weight."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.before: list[Neighbour] = []

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * sum(other.up.weight.mean() for other in self.before)


class Neighbours(Stack):
    def __init__(self) -> None:
        super().__init__(Neighbour)
        for place, layer in enumerate(self.layers[1:]):
            layer.before.append(self.layers[place])


class Shared(Stack):
    """One block stands in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block()] * LAYERS)


class Bypassed(Stack):
    """Calls the forwards of its blocks past their modules."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.forward(x)
        return x.sum()


class Caches(Block):
    """Makes something at its first call and keeps it."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None:
            self.kept = torch.arange(x.shape[1])
        return super().forward(x) + self.kept


class Viewing(Block):
    """Returns a part of what it was given."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x = super().forward(x) + 1
        return x, x[:, 0]


class Views(Stack):
    def __init__(self) -> None:
        super().__init__(Viewing)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, first = layer(x)
            first.mul_(2)
        return x.sum()


def _hooked() -> nn.Module:
    module = Stack()
    for place, layer in enumerate(module.layers):
        layer.up.register_forward_hook(lambda _module, _given, result, by=place: result * by)
    return module


WHOLE: dict[str, Callable[[], nn.Module]] = {
    "few": lambda: Stack(layers=3),
    "index": lambda: Stack(Indexed),
    "one index": lambda: Stack(Late),
    "type of the index": lambda: Stack(Asks),
    "rates": lambda: Stack(Rated),
    "attributes": Sums,
    "collecting": Collects,
    "appending": Appends,
    "counting": Counts,
    "neighbours": Neighbours,
    "one block": Shared,
    "bypassed": Bypassed,
    "views": Views,
    "hooks inside": _hooked,
    "caches": lambda: Stack(Caches),
}


@pytest.mark.parametrize("name", WHOLE)
def test_blocks_that_differ_all_run(name: str) -> None:
    module = WHOLE[name]()
    once, _ = both(module)
    assert once is None


@pytest.mark.parametrize("name", [*ONCE, *WHOLE])
def test_the_graph_is_that_of_all_blocks(name: str) -> None:
    make = WHOLE[name] if name in WHOLE else ONCE[name][0]
    _, whole = both(make())
    assert fingerprint(capture(make(), (X,))) == fingerprint(whole)


@pytest.mark.parametrize("place", range(LAYERS))
def test_a_hook_on_a_block_runs(place: int) -> None:
    module = Stack()
    module.layers[place].register_forward_hook(lambda _module, _given, result: result * 2)
    once, whole = both(module)
    assert (once is None) == (place == 0)  # the first block is the one that is compared
    assert once in (None, whole)


def _state(module: nn.Module) -> dict[str, Any]:
    held = {
        f"{path}.{name}": dict(value) if isinstance(value, dict) else value
        for path, each in module.named_modules()
        for name, value in vars(each).items()
    }
    return {name: repr(value) for name, value in held.items()} | {
        name: id(tensor) for name, tensor in (*module.named_parameters(), *module.named_buffers())
    }


class Fails(Stack):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise RuntimeError("after its blocks")


@pytest.mark.parametrize(
    "make", [Stack, Fails, lambda: Stack(Caches), lambda: Stack(Indexed), lambda: Stack(Normed)]
)
def test_the_module_stays_as_it_was(make: Callable[[], nn.Module]) -> None:
    module = make().eval()
    before = _state(module)
    trace_once(module, prepare(module, (X,), {}))
    assert _state(module) == before
