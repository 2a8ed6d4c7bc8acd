"""Models of transformers by class name."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from autopar.capture import capture, interpret
from autopar.errors import ModelError
from autopar.models import parse_model

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
CONFIGS: dict[str, dict[str, Any]] = {
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "model_type": "gpt2"},
    "LlamaForCausalLM": {**SIZES, "num_key_value_heads": 2, "vocab_size": 64},
    "BertForMaskedLM": {**SIZES, "vocab_size": 64},
    "ViTForImageClassification": {**SIZES, "image_size": 16, "patch_size": 8},
    "T5ForConditionalGeneration": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 64,
    },
    "WhisperForConditionalGeneration": {
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 2),
        **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
        **{
            "d_model": 32,
            "num_mel_bins": 8,
            "max_source_positions": 8,
            "max_target_positions": 16,
            "vocab_size": 64,
        },
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
    },
}


def write(folder: Path, name: str) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**CONFIGS[name], "attn_implementation": "eager"}))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_models_return_their_scalar_loss(name: str, tmp_path: Path) -> None:
    source = parse_model(f"hf:{name}:{write(tmp_path, name)}")
    built = source.build(global_batch=4, seq_len=12, device="cpu", seed=2)
    loss = built.module.eval()(**built.kwargs)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert type(built.module).__name__ == name
    assert built.global_batch == 4

    planned = source.build(global_batch=4, seq_len=12)
    graph = capture(planned.module, planned.args, planned.kwargs)
    assert graph.output_tree == "tensor"
    torch.testing.assert_close(interpret(graph, built.module, (), built.kwargs)[0], loss)
    kinds = {
        "T5ForConditionalGeneration": 4,
        "WhisperForConditionalGeneration": 2,
    }  # T5's first blocks own a bias
    assert len({each.type for each in graph.calls if each.module}) == kinds.get(name, 1)


def test_attention_is_the_fused_one(tmp_path: Path) -> None:
    built = parse_model(f"hf:LlamaForCausalLM:{write(tmp_path, 'LlamaForCausalLM')}").build(seq_len=8)
    graph = capture(built.module, built.args, built.kwargs)
    targets = {each.target for kind in graph.types for each in kind.operators}
    assert "aten.scaled_dot_product_attention.default" in targets
    assert "aten.softmax.int" not in targets


def test_masked_inputs_have_padding_and_few_labels(tmp_path: Path) -> None:
    source = parse_model(f"hf:BertForMaskedLM:{write(tmp_path, 'BertForMaskedLM')}")
    inputs = source.build(global_batch=8, seq_len=64, device="cpu").kwargs
    assert inputs["attention_mask"].sum() < inputs["attention_mask"].numel()
    assert ((inputs["labels"] >= 0).sum(dim=1) > 0).all()
    assert (inputs["labels"][inputs["attention_mask"] == 0] == -100).all()


def test_without_a_configuration_the_default_one_holds() -> None:
    built = parse_model("hf:GPT2LMHeadModel").build(global_batch=2)
    assert sum(each.numel() for each in built.module.parameters()) == 124_439_808
    assert built.module.training


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf:GPT2LMHead", "no model class 'GPT2LMHead'; did you mean 'GPT2LMHeadModel'"),
        ("hf:GPT2Config", "no model class"),
        ("hf:", "no model class ''"),
        ("hf:GPT2Model", "ForCausalLM, LMHeadModel, ForMaskedLM, ForImageClassification"),
        ("hf:GPT2LMHeadModel:missing.json", "missing.json cannot be read: No such file"),
    ],
)
def test_errors_name_the_thing(text: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        parse_model(text).build()


def test_bad_configurations(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        parse_model(f"hf:BertForMaskedLM:{path}").build()
    path.write_text("[1]")
    with pytest.raises(ModelError, match="holds a list"):
        parse_model(f"hf:BertForMaskedLM:{path}").build()
    path.write_text(json.dumps(CONFIGS["GPT2LMHeadModel"]))
    with pytest.raises(ModelError, match="configures a 'gpt2' model, but BertForMaskedLM is 'bert'"):
        parse_model(f"hf:BertForMaskedLM:{path}").build()
    path.write_text(json.dumps({**SIZES, "num_attention_heads": 5}))
    with pytest.raises(ModelError, match="cannot be built"):
        parse_model(f"hf:BertForMaskedLM:{path}").build()
    path.write_text(json.dumps({**SIZES, "max_position_embeddings": 16}))
    with pytest.raises(ModelError, match="positions for 16 tokens, not for 32"):
        parse_model(f"hf:BertForMaskedLM:{path}").build(seq_len=32)


def test_transformers_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without_transformers(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "transformers":
            raise ImportError(name)
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_transformers)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"pip install autopar\[huggingface\]"):
        parse_model("hf:GPT2LMHeadModel").build()


def test_conditional_generation_without_an_encoder_is_named(tmp_path: Path) -> None:
    source = parse_model("hf:LlavaForConditionalGeneration")
    with pytest.raises(ModelError, match=r"encoder and a decoder\. For others write a factory"):
        source.build()
