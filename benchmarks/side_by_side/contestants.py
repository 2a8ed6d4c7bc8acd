"""From an entry of a contest to something that trains: a generated program, or a way to train by hand."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from autopar.models import BuiltModel, parse_model
from autopar.runtime.source import load_source

from ..by_hand import ddp, fsdp2, single, tensor_parallel
from ..by_hand.language_model import Recipe
from ..by_hand.trainer import Trainer, adamw
from .contests import Hand

__all__ = ["built_model", "trainer_of"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WAYS = {
    "single": single.build,
    "single-autocast": partial(single.build, by_autocast=True),
    "ddp": ddp.build,
    "fsdp2": partial(fsdp2.build, reshards=False),
    "fsdp2-reshard": partial(fsdp2.build, reshards=True),
    "tensor-parallel": tensor_parallel.build,
}


def built_model(contest: dict[str, Any], device: torch.device) -> BuiltModel:
    """The contest's model with parameters that are the same on every rank, and a batch of random tokens."""
    source = parse_model(contest["model"])
    return source.build(
        global_batch=contest["global_batch"], seq_len=contest["seq_len"], device=str(device), seed=0
    )


def trainer_of(entry: dict[str, Any], built: BuiltModel, index: dict[str, Any], folder: Path) -> Trainer:
    """A trainer of the model, which is changed in place. Every rank calls it."""
    if "program" in entry:
        program = load_source((folder / entry["program"]).read_text(encoding="utf-8"))
        running = program.build(built.module, compile=index["compiles"])
        return Trainer(running, adamw(running.module.parameters()))
    hand = Hand.parse(entry["by_hand"])
    recipe = Recipe(
        DTYPES[index["precision"]], hand.recomputes, index["compiles"] and hand.is_compiled, hand.microbatches
    )
    return WAYS[hand.way](built.module, recipe)
