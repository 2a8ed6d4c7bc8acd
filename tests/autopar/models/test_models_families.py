"""Built-in families and named models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from autopar.errors import ModelError
from autopar.models import parse_model


def count(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("gpt2", 124_430_592),
        ("llama3-8b", 8_030_261_248),
        ("llama3-70b", 70_553_706_496),
        ("llama3-405b", 405_853_388_800),
    ],
)
def test_named_models_have_their_published_sizes(text: str, parameters: int) -> None:
    built = parse_model(text).build(global_batch=2)
    assert count(built.module) == parameters
    assert all(each.is_meta for each in (*built.module.parameters(), *built.args))
    assert built.tokens == 2 * (1024 if text == "gpt2" else 8192)


def test_named_models_can_be_overridden() -> None:
    module = parse_model("llama3-8b:layers=2,vocab=1000").build(seq_len=16).module
    assert len(module.layers) == 2
    assert module.head.weight.shape == (1000, 4096)


@pytest.mark.parametrize(
    "text",
    [
        "gpt:layers=2,hidden=32,heads=4,vocab=64,ffn=48",
        "llama:layers=2,hidden=32,heads=4,kv_heads=2,ffn=48,vocab=64",
        "llama:layers=1,hidden=32,heads=4",
        "mlp:layers=2,hidden=32,inputs=8,classes=5",
        "mlp",
    ],
)
def test_families_train(text: str) -> None:
    built = parse_model(text).build(global_batch=4, seq_len=8, device="cpu", seed=1)
    loss = built.module(*built.args, **built.kwargs)
    loss.backward()
    assert loss.shape == ()
    assert built.global_batch == 4
    assert all(each.grad is not None for each in built.module.parameters())


def test_the_first_loss_is_that_of_guessing() -> None:
    for text in ("gpt:hidden=64,vocab=512", "llama:hidden=64,vocab=512"):
        built = parse_model(text).build(global_batch=4, seq_len=64, device="cpu")
        assert abs(built.module(*built.args).item() - torch.tensor(512.0).log().item()) < 0.1


def test_equal_seeds_build_equal_models_and_leave_the_random_state() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (
        parse_model("gpt:layers=1,hidden=16,heads=2").build(device="cpu", seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.module.tokens.weight, again.module.tokens.weight)
    assert torch.equal(first.args[0], again.args[0])
    assert not torch.equal(first.module.tokens.weight, other.module.tokens.weight)
    assert not torch.equal(first.args[0], other.args[0])


def test_ignored_targets_do_not_count() -> None:
    built = parse_model("llama:layers=1,hidden=16,heads=2").build(global_batch=2, seq_len=6, device="cpu")
    tokens, targets = built.args
    targets[0] = -100
    expected = built.module(tokens[1:], targets[1:])
    assert torch.allclose(built.module(tokens, targets), expected)


def test_dropout_drops_in_training_only() -> None:
    built = parse_model("gpt:layers=1,hidden=32,heads=2,dropout=0.5").build(seq_len=8, device="cpu")
    assert built.module(*built.args) != built.module(*built.args)
    built.module.eval()
    assert built.module(*built.args) == built.module(*built.args)


def test_a_gpt_has_a_position_for_every_token() -> None:
    assert parse_model("gpt").build(seq_len=300).module.positions.weight.shape[0] == 300
    assert parse_model("gpt:context=64").build(seq_len=32).module.positions.weight.shape[0] == 64
    with pytest.raises(ModelError, match="positions for 1024 tokens, not for 2048"):
        parse_model("gpt2").build(seq_len=2048)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpt3", "unknown model 'gpt3'.*Known: gpt, llama, mlp, gpt2, llama3-8b"),
        ("lama:layers=2", "did you mean 'llama'"),
        ("llama3-7b", "did you mean 'llama3-70b'|did you mean 'llama3-8b'"),
        ("", "unknown model ''"),
        ("gpt:layer=3", "unknown size 'layer'; did you mean 'layers'.*Legal: layers, hidden, heads, vocab"),
        ("gpt:kv_heads=3", "unknown size 'kv_heads'"),
        ("gpt:layers", "'layers' is given without a value"),
        ("gpt:layers=", "layers= is not a whole number"),
        ("gpt:layers=2,layers=3", "'layers' is given twice"),
        ("gpt:layers=two", "layers=two is not a whole number"),
        ("gpt:layers=1.5", "layers=1.5 is not a whole number"),
        ("gpt:layers=0", "layers=0 must be positive"),
        ("gpt:hidden=-4", "hidden=-4 must be positive"),
        ("gpt:dropout=1", "below 1"),
        ("gpt:hidden=30,heads=4", "hidden=30 does not split into heads=4"),
        ("llama:heads=4,kv_heads=3", "heads=4 do not share kv_heads=3"),
        ("llama:hidden=12,heads=4", "even head size"),
    ],
)
def test_errors_name_the_thing_and_the_choices(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){words}"):
        parse_model(text)


@pytest.mark.parametrize("name", ["gpt", "llama"])
def test_on_meta_no_parameter_is_drawn(name: str) -> None:
    class Drawn(TorchDispatchMode):
        """Lists the operators that run."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            drawn.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    drawn: list[str] = []
    with Drawn():
        built = parse_model(f"{name}:layers=2").build()
    assert not {"normal_", "uniform_"} & set(drawn)
    assert all(each.is_meta for each in built.module.parameters())
