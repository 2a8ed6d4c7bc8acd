"""Models of ``transformers`` with random weights: ``hf:GPT2LMHeadModel``, ``hf:ViTModel:config.json``."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autopar.errors import ModelError
from autopar.models.source import (
    DEFAULT_GLOBAL_BATCH,
    BuiltModel,
    ModelSource,
    closest,
    random_integers,
    seeded,
)

__all__ = ["HuggingFaceSource"]

DEFAULT_SEQ_LEN = 128
"""Tokens of a sequence when nobody says."""
POSITIONS = ("max_position_embeddings", "max_target_positions")
"""What configurations call the number of positions that a decoder knows."""
MASKED_FRACTION = 0.15
"""Share of tokens that a masked language model predicts (Devlin et al., 2018)."""


@dataclass(frozen=True)
class HuggingFaceSource(ModelSource):
    """A class of ``transformers``, built from its configuration; it returns the scalar loss alone."""

    text: str
    class_name: str
    config_path: Path | None = None

    def build(
        self,
        *,
        global_batch: int | None = None,
        seq_len: int | None = None,
        device: str = "meta",
        seed: int = 0,
    ) -> BuiltModel:
        """Builds the module with random parameters and inputs that fit its kind; dropout as configured."""
        model_class = self._model_class()
        make_inputs = self._inputs_of_kind(model_class)
        config = self._config(model_class)
        self._check_kind(config)
        batch = DEFAULT_GLOBAL_BATCH if global_batch is None else global_batch
        tokens = self._tokens(config, seq_len)
        with seeded(seed, device):
            module = self._make(_returning_loss(model_class), config)
        with seeded(seed + 1, device):
            return BuiltModel(module.train(), make_inputs(config, batch, tokens))

    def _model_class(self) -> type[nn.Module]:
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                f"{self.text} needs the package transformers: pip install autopar[huggingface]"
            ) from error
        found = getattr(transformers, self.class_name, None)
        if not isinstance(found, type) or not issubclass(found, nn.Module):
            raise ModelError(
                f"transformers {transformers.__version__} has no model class {self.class_name!r}"
                f"{closest(self.class_name, dir(transformers))}"
            )
        return found

    def _inputs_of_kind(self, model_class: type[nn.Module]) -> Callable[[Any, int, int], dict[str, Tensor]]:
        for ending, make_inputs in INPUTS_BY_ENDING.items():
            if model_class.__name__.endswith(ending):
                return make_inputs
        raise ModelError(
            f"{self.text}: autopar makes inputs for classes that end in {', '.join(INPUTS_BY_ENDING)}. "
            "For others write a factory (path/file.py:factory) that returns (module, inputs)."
        )

    def _check_kind(self, config: Any) -> None:
        """Conditional generation is translation or transcription here, by an encoder and a decoder."""
        if self.class_name.endswith(CONDITIONAL) and not getattr(config, "is_encoder_decoder", False):
            raise ModelError(
                f"{self.text}: autopar makes inputs for classes that end in {CONDITIONAL} where they are an encoder "
                "and a decoder. For others write a factory (path/file.py:factory) that returns (module, inputs)."
            )

    def _config(self, model_class: Any) -> Any:
        given: dict[str, Any] = {}
        if self.config_path is not None:
            given = self._read_config(self.config_path)
            expected = model_class.config_class.model_type
            if given.get("model_type", expected) != expected:
                raise ModelError(
                    f"{self.config_path} configures a {given['model_type']!r} model, "
                    f"but {self.class_name} is {expected!r}"
                )
        chosen = {name: value for name, value in given.items() if "attn_implementation" not in name}
        try:
            config = model_class.config_class.from_dict({**chosen, "use_cache": False})
        except Exception as error:
            raise ModelError(f"{self.text}: {type(error).__name__}: {error}") from error
        if self.class_name.endswith(CONDITIONAL) and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = (
                getattr(config, "pad_token_id", None) or 0
            )  # T5 leaves it to whoever generates text
        return config

    def _read_config(self, path: Path) -> dict[str, Any]:
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"{self.text}: {path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ModelError(f"{self.text}: {path} is not JSON: {error}") from error
        if not isinstance(given, dict):
            raise ModelError(f"{self.text}: {path} holds a {type(given).__name__}, not a JSON object")
        return given

    def _tokens(self, config: Any, seq_len: int | None) -> int:
        name = next((name for name in POSITIONS if hasattr(config, name)), "")
        longest = getattr(config, name, None)
        if longest is not None and seq_len is not None and seq_len > longest:
            raise ModelError(
                f"{self.text} has positions for {longest} tokens, not for {seq_len}: "
                f"shorten the sequence, or raise {name} in config.json"
            )
        return seq_len or min(DEFAULT_SEQ_LEN, longest or DEFAULT_SEQ_LEN)

    def _make(self, model_class: Callable[[Any], nn.Module], config: Any) -> nn.Module:
        try:
            return model_class(config)
        except Exception as error:
            raise ModelError(f"{self.text} cannot be built: {type(error).__name__}: {error}") from error


def _returning_loss(model_class: Any) -> Any:
    """A subclass, under the same name, whose forward returns the loss and nothing else."""

    def forward(self: Any, **inputs: Any) -> Tensor:
        return model_class.forward(self, **inputs).loss

    return type(
        model_class.__name__, (model_class,), {"forward": forward, "__module__": model_class.__module__}
    )


def _causal_inputs(config: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    """Tokens, which are their own labels: the model shifts them."""
    text = random_integers(config.vocab_size, batch, tokens)
    return {"input_ids": text, "labels": text.clone()}


def _masked_inputs(config: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    """Sequences of different lengths; the first token and a share of the others are to be predicted."""
    text = random_integers(config.vocab_size, batch, tokens)
    lengths = torch.randint(max(1, tokens // 2), tokens + 1, (batch, 1))
    is_text = torch.arange(tokens) < lengths
    is_predicted = (torch.rand(batch, tokens) < MASKED_FRACTION) & is_text
    is_predicted[:, 0] = True
    labels = text.masked_fill(~is_predicted, -100)
    return {"input_ids": text, "attention_mask": is_text.long(), "labels": labels}


def _image_inputs(config: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    """Images of the configured size and their classes."""
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    pixels = torch.randn(batch, config.num_channels, height, width)
    return {"pixel_values": pixels, "labels": random_integers(config.num_labels, batch)}


def _conditional_inputs(config: Any, batch: int, tokens: int) -> dict[str, Tensor]:
    """What the encoder reads, tokens or spectra of sound, and the tokens that the decoder is to write."""
    labels = random_integers(config.vocab_size, batch, tokens)
    if hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions  # the encoder's convolutions halve them
        return {"input_features": torch.randn(batch, config.num_mel_bins, frames), "labels": labels}
    return {"input_ids": random_integers(config.vocab_size, batch, tokens), "labels": labels}


CONDITIONAL = "ForConditionalGeneration"
INPUTS_BY_ENDING: dict[str, Callable[[Any, int, int], dict[str, Tensor]]] = {
    "ForCausalLM": _causal_inputs,
    "LMHeadModel": _causal_inputs,
    "ForMaskedLM": _masked_inputs,
    "ForImageClassification": _image_inputs,
    CONDITIONAL: _conditional_inputs,
}
"""Which inputs a model takes, by the ending of its class name."""
