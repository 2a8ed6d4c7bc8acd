"""Built-in families and named models: ``gpt:layers=4,hidden=256,heads=4,vocab=512``, ``llama3-8b``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from autopar.errors import ModelError
from autopar.models.gpt import GPT, GPTConfig
from autopar.models.llama import Llama, LlamaConfig
from autopar.models.mlp import MLP, MLPConfig
from autopar.models.source import (
    DEFAULT_GLOBAL_BATCH,
    BuiltModel,
    ModelSource,
    closest,
    random_integers,
    seeded,
)

__all__ = ["FAMILIES", "NAMED", "FamilySource", "parse_family"]

DEFAULT_SEQ_LEN = 128
"""Tokens of a sequence of a family when nobody says."""

Config = TypeVar("Config", GPTConfig, LlamaConfig, MLPConfig)


@dataclass(frozen=True)
class FamilySource(ModelSource, Generic[Config]):
    """A module of this package with its sizes."""

    text: str
    config: Config
    seq_len: int | None = None
    """The sequence length of a named model."""

    def build(
        self,
        *,
        global_batch: int | None = None,
        seq_len: int | None = None,
        device: str = "meta",
        seed: int = 0,
    ) -> BuiltModel:
        """Builds the module with random parameters and random inputs."""
        batch = DEFAULT_GLOBAL_BATCH if global_batch is None else global_batch
        tokens = seq_len or self.seq_len or DEFAULT_SEQ_LEN
        with seeded(seed, device):
            module = self._module(tokens)
        with seeded(seed + 1, device):
            return BuiltModel(module, self._inputs(batch, tokens))

    @abstractmethod
    def _module(self, seq_len: int) -> nn.Module:
        """Makes the module."""

    @abstractmethod
    def _inputs(self, batch: int, seq_len: int) -> tuple[Any, ...]:
        """Makes the inputs."""


class GPTSource(FamilySource[GPTConfig]):
    """A GPT; its position table has a row for each token of the sequence unless ``context`` is given."""

    def _module(self, seq_len: int) -> nn.Module:
        if self.config.context and seq_len > self.config.context:
            raise ModelError(
                f"{self.text} has positions for {self.config.context} tokens, not for {seq_len}: "
                f"shorten the sequence, or give context={seq_len}"
            )
        return GPT(replace(self.config, context=self.config.context or seq_len))

    def _inputs(self, batch: int, seq_len: int) -> tuple[Any, ...]:
        return _token_inputs(self.config.vocab, batch, seq_len)


class LlamaSource(FamilySource[LlamaConfig]):
    """A Llama."""

    def _module(self, seq_len: int) -> nn.Module:
        return Llama(self.config)

    def _inputs(self, batch: int, seq_len: int) -> tuple[Any, ...]:
        return _token_inputs(self.config.vocab, batch, seq_len)


class MLPSource(FamilySource[MLPConfig]):
    """An MLP."""

    def _module(self, seq_len: int) -> nn.Module:
        return MLP(self.config)

    def _inputs(self, batch: int, seq_len: int) -> tuple[Any, ...]:
        width = self.config.inputs or self.config.hidden
        return torch.randn(batch, width), random_integers(self.config.classes, batch)


def _token_inputs(vocab: int, batch: int, seq_len: int) -> tuple[Any, ...]:
    """Tokens and the tokens that follow them."""
    text = random_integers(vocab, batch, seq_len + 1)
    return text[:, :-1].contiguous(), text[:, 1:].contiguous()


FAMILIES: Mapping[str, FamilySource[Any]] = {
    "gpt": GPTSource("gpt", GPTConfig(context=0)),
    "llama": LlamaSource("llama", LlamaConfig()),
    "mlp": MLPSource("mlp", MLPConfig()),
}
"""Families by name, with the sizes that hold where none are given."""


def _llama3(name: str, layers: int, hidden: int, heads: int, ffn: int) -> FamilySource[Any]:
    """A Llama 3 as published ("The Llama 3 Herd of Models", 2024, table 3): 8 key/value heads."""
    config = LlamaConfig(layers=layers, hidden=hidden, heads=heads, kv_heads=8, ffn=ffn, vocab=128_256)
    return LlamaSource(name, config, seq_len=8192)


NAMED: Mapping[str, FamilySource[Any]] = {
    "gpt2": GPTSource(
        "gpt2", GPTConfig(layers=12, hidden=768, heads=12, vocab=50_257, context=1024), seq_len=1024
    ),
    "llama3-8b": _llama3("llama3-8b", 32, 4096, 32, 14_336),
    "llama3-70b": _llama3("llama3-70b", 80, 8192, 64, 28_672),
    "llama3-405b": _llama3("llama3-405b", 126, 16_384, 128, 53_248),
}
"""Named models; gpt2 as in Radford et al., 2019, with separate q, k and v."""


def parse_family(text: str) -> FamilySource[Any]:
    """Reads ``name`` or ``name:key=value,…`` for a family or a named model; raises ModelError."""
    name, _, sizes = text.partition(":")
    known = {**FAMILIES, **NAMED}
    if name not in known:
        raise ModelError(
            f"unknown model {name!r}{closest(name, known)}\n"
            f"Known: {', '.join(known)} (each with :key=value,…), hf:ClassName[:config.json], "
            "path/file.py:factory."
        )
    source = known[name]
    values = _read_sizes(text, source.config, sizes)
    config = replace(source.config, **values)
    _check(text, config)
    return replace(source, text=text, config=config)


def _read_sizes(text: str, config: Any, sizes: str) -> dict[str, int | float]:
    legal = {each.name: type(getattr(config, each.name)) for each in fields(config)}
    values: dict[str, int | float] = {}
    for pair in sizes.split(",") if sizes else ():
        key, equals, value = (part.strip() for part in pair.partition("="))
        if key not in legal:
            raise ModelError(f"{text}: unknown size {key!r}{closest(key, legal)}\nLegal: {', '.join(legal)}.")
        if not equals or key in values:
            raise ModelError(f"{text}: {key!r} is given {'twice' if equals else 'without a value'}")
        values[key] = _read_number(text, key, value, legal[key])
    return values


def _read_number(text: str, key: str, value: str, kind: type) -> int | float:
    try:
        number = kind(value)
    except ValueError:
        raise ModelError(f"{text}: {key}={value} is not {'a whole' if kind is int else 'a'} number") from None
    if number < 0 or (number == 0 and key in ("layers", "hidden", "heads", "vocab", "classes", "norm_eps")):
        raise ModelError(f"{text}: {key}={value} must be positive")
    return number


def _check(text: str, config: Any) -> None:
    """Raises ModelError for sizes that do not fit together."""
    if not 0 <= config.dropout < 1:
        raise ModelError(f"{text}: dropout={config.dropout} must be at least 0 and below 1")
    heads = getattr(config, "heads", 1)
    if config.hidden % heads:
        raise ModelError(f"{text}: hidden={config.hidden} does not split into heads={heads}")
    if isinstance(config, LlamaConfig):
        if heads % (config.kv_heads or heads):
            raise ModelError(f"{text}: heads={heads} do not share kv_heads={config.kv_heads} evenly")
        if config.hidden // heads % 2:
            raise ModelError(f"{text}: rotary positions need an even head size, not {config.hidden // heads}")
