"""Llama, Mistral and Qwen 2 in config.json: fields read into a LlamaConfig and written from one.

`transformers` 5 keeps theta and scaling in `rope_parameters`, older releases in `rope_theta` and `rope_scaling`: both
are read, and the older fields are written, which both understand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmpy.errors import UserError
from llmpy.formats.huggingface.gpt2 import check_fixed
from llmpy.formats.tensor_map import checked_config
from llmpy.models.config import RopeScaling
from llmpy.models.llama import LlamaConfig

MODEL_TYPES = ("llama", "mistral", "qwen2")
# Defaults of `transformers` where they differ by the model type; files of today leave out next to nothing.
_KV_HEADS = {"mistral": 8, "qwen2": 32}
_CONTEXT = {"llama": 2048, "mistral": 131072, "qwen2": 32768}
_EPS = 1e-6
FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0, 1),
    "quantization_config": (None,),
}
# In the config.json of a model that was trained here with neighbouring channels rotated (`rope_interleaved`): its
# weights are written in Hugging Face's order, and go back into the order of its optimizer's moments when it trains on.
INTERLEAVED = "llmpy_rope_interleaved"
_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_context": "original_max_position_embeddings",
}


def config_of(fields: dict[str, Any], path: Path) -> LlamaConfig:
    """The fields of config.json -> the shape. Raises UserError naming the field that cannot be run."""
    check_fixed(fields, FIXED, path)
    model_type = fields["model_type"]

    def field(name: str, default: Any = None) -> Any:
        return default if fields.get(name) is None else fields[name]

    heads = field("num_attention_heads", 32)
    context = field("max_position_embeddings", _CONTEXT[model_type])
    window = field("sliding_window")
    if model_type == "mistral" or (model_type == "qwen2" and field("use_sliding_window", False)):
        # Within the window it is the same model.
        context = min(context, window) if type(window) is int and type(context) is int else context
    theta, scaling = _rope(fields, path)
    sizes = {
        "vocab_size": field("vocab_size", 32000),
        "context": context,
        "layers": field("num_hidden_layers", 32),
        "heads": heads,
        "kv_heads": field("num_key_value_heads", _KV_HEADS.get(model_type, heads)),
        "channels": field("hidden_size", 4096),
        "hidden": field("intermediate_size", 11008),
    }
    if field("head_dim"):
        sizes["head_size"] = fields["head_dim"]
    return checked_config(
        str(path),
        **sizes,
        rope_theta=theta,
        rope_scaling=scaling,
        rope_interleaved=fields.get(INTERLEAVED) is True,
        tied=field("tie_word_embeddings", False) is True,
        qkv_bias=model_type == "qwen2",
        norm_eps=field("rms_norm_eps", _EPS),
    )


def _rope(fields: dict[str, Any], path: Path) -> tuple[Any, RopeScaling | None]:
    """Theta, and the scaling of Llama 3.1; any other scaling is refused."""
    scaling = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise UserError(f"{path}: rope_scaling is no table")
    theta = scaling.get("rope_theta") or fields.get("rope_theta") or 10000.0
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{path}: rope_scaling is of type {json.dumps(kind)[:80]}, and only llama3 can be run")
    if missing := [name for name in _SCALING.values() if name not in scaling]:
        raise UserError(f"{path}: rope_scaling lacks {', '.join(missing)}")
    try:
        return theta, RopeScaling(**{ours: scaling[name] for ours, name in _SCALING.items()})
    except UserError as error:
        raise UserError(f"{path}: rope_scaling: {error}") from error


def fields_of(config: LlamaConfig) -> dict[str, Any]:
    """Returns the fields of config.json: of a Llama, or of a Qwen 2 if q, k and v have biases."""
    scaling = None
    if config.rope_scaling is not None:
        scaling = {"rope_type": "llama3"}
        scaling |= {name: getattr(config.rope_scaling, ours) for ours, name in _SCALING.items()}
    return {
        "architectures": ["Qwen2ForCausalLM" if config.qkv_bias else "LlamaForCausalLM"],
        "model_type": "qwen2" if config.qkv_bias else "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_size": config.channels,
        "intermediate_size": config.hidden,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        **({INTERLEAVED: True} if config.rope_interleaved else {}),
    }
