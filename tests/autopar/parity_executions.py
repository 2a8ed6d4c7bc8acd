"""Ways to run a step beside meshes: microbatches, recomputation, ZeRO levels, stages under every schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.autopar.parity import DEEP_MODELS, MODELS, Case

__all__ = ["EXECUTIONS", "PIPELINES", "execution_cases", "pipeline_cases"]

Way = Mapping[str, Any]

EXECUTIONS: tuple[Way, ...] = (
    {"cluster": "cpu:2", "pins": "dp_replicate=2,zero=0,microbatch=2", "uneven": True},
    {"cluster": "cpu:2", "pins": "dp_shard=2,zero=1,microbatch=1,recompute=full"},
    {"cluster": "cpu:2", "pins": "dp_shard=2,zero=2,microbatch=2,recompute=selective", "uneven": True},
    {"cluster": "cpu:2", "pins": "dp_shard=2,zero=3,microbatch=2"},
    {"cluster": "cpu:2", "pins": "tp=2,microbatch=4,recompute=selective"},
    {"cluster": "cpu:4", "pins": "dp_shard=4,zero=2,microbatch=1", "uneven": True},
    {"cluster": "cpu:2x2", "pins": "dp_shard=2,tp=2,zero=3,microbatch=2,recompute=full"},
    {"cluster": "cpu:2x2", "pins": "dp_replicate=2,dp_shard=2,zero=1,microbatch=1"},
    {"cluster": "cpu:2x2", "pins": "cp=2,tp=2,microbatch=2,recompute=full"},
)
"""Several microbatches on one stage."""

PIPELINES: tuple[Way, ...] = (
    {"cluster": "cpu:2", "pins": "pp=2,microbatch=2"},
    {"cluster": "cpu:2", "pins": "pp=2,schedule=interleaved,chunks=2,microbatch=1,recompute=full"},
    {"cluster": "cpu:2", "pins": "pp=2,schedule=zero-bubble,chunks=2,microbatch=2"},
    {"cluster": "cpu:4", "pins": "pp=4,schedule=1f1b,microbatch=1", "uneven": True},
    {"cluster": "cpu:4", "pins": "pp=4,schedule=zero-bubble,microbatch=1,recompute=selective"},
    {"cluster": "cpu:4", "pins": "dp_shard=2,pp=2,zero=1,schedule=gpipe,microbatch=1"},
    {"cluster": "cpu:4", "pins": "dp_shard=2,pp=2,zero=2,schedule=1f1b,microbatch=1,recompute=selective"},
    {
        "cluster": "cpu:4",
        "pins": "dp_shard=2,pp=2,zero=3,schedule=interleaved,chunks=2,microbatch=1,recompute=full",
        "uneven": True,
    },
    {"cluster": "cpu:4", "pins": "dp_shard=2,pp=2,zero=1,schedule=zero-bubble,microbatch=1", "uneven": True},
    {"cluster": "cpu:4", "pins": "dp_replicate=2,pp=2,zero=0,schedule=zero-bubble,microbatch=2"},
    {"cluster": "cpu:4", "pins": "dp_replicate=2,pp=2,schedule=1f1b,microbatch=1,recompute=full"},
    {"cluster": "cpu:4", "pins": "pp=2,tp=2,schedule=gpipe,microbatch=2,recompute=full"},
    {"cluster": "cpu:4", "pins": "pp=2,tp=2,schedule=1f1b,microbatch=2", "uneven": True},
    {
        "cluster": "cpu:4",
        "pins": "pp=2,tp=2,schedule=interleaved,chunks=2,microbatch=2,recompute=selective",
    },
    {"cluster": "cpu:4", "pins": "pp=2,tp=2,schedule=zero-bubble,microbatch=1"},
    {"cluster": "cpu:4", "pins": "cp=2,pp=2,schedule=1f1b,microbatch=2"},
    {
        "cluster": "cpu:8",
        "pins": "dp_shard=2,pp=2,tp=2,zero=1,schedule=zero-bubble,microbatch=1",
        "uneven": True,
    },
    {"cluster": "cpu:8", "pins": "dp_shard=2,pp=2,tp=2,zero=2,schedule=1f1b,microbatch=1,recompute=full"},
    {
        "cluster": "cpu:8",
        "pins": "dp_shard=2,pp=2,tp=2,zero=3,schedule=interleaved,chunks=2,microbatch=1,recompute=selective",
    },
    {"cluster": "cpu:8", "pins": "dp_replicate=2,pp=2,tp=2,schedule=gpipe,microbatch=1"},
    {"cluster": "cpu:8", "pins": "dp_replicate=2,dp_shard=2,pp=2,zero=2,schedule=1f1b,microbatch=1"},
    {"cluster": "cpu:8", "pins": "dp_shard=2,pp=4,zero=3,schedule=1f1b,microbatch=1", "uneven": True},
    {"cluster": "cpu:8", "pins": "pp=4,tp=2,schedule=interleaved,chunks=1,microbatch=1"},
)
"""Stages; pinned schedules take every recompute and ZeRO level between them."""

PIPELINE_MODELS = ("gpt-4", "llama-4", "mlp-4", "hf-gpt2", "hf-llama", "hf-vit", "hf-t5", "hf-whisper")
EXECUTION_MODELS = (*(model for model in MODELS if model not in ("two-tower", "hf-bert")), *DEEP_MODELS)
"""A contrastive loss mixes the samples of a batch; so, for a capture that does not see through its indices,
does BERT's attention mask."""
WITHOUT_SEQUENCE = ("mlp", "mlp-4")
WITHOUT_TOKENS = (*WITHOUT_SEQUENCE, "hf-vit")


def execution_cases() -> list[Case]:
    """Every model in every way with microbatches."""
    return [Case(model, **way) for model in EXECUTION_MODELS for way in EXECUTIONS if _applies(model, way)]


def pipeline_cases() -> list[Case]:
    """Every model in every way with stages."""
    return [Case(model, **way) for model in PIPELINE_MODELS for way in PIPELINES if _applies(model, way)]


def _applies(model: str, way: Way) -> bool:
    has_sequence = model not in WITHOUT_SEQUENCE or "cp=" not in way["pins"]
    return has_sequence and (model not in WITHOUT_TOKENS or not way.get("uneven"))
