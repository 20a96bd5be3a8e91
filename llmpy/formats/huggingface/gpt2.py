"""GPT-2 in config.json: fields read into a GPT2Config and written from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llmpy.errors import UserError
from llmpy.models.gpt2 import GPT2_VOCAB_SIZE, GPT2Config

# What is built into our GPT-2, by the field that says so; another value describes another model.
FIXED: dict[str, tuple[Any, ...]] = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def check_fixed(fields: dict[str, Any], fixed: dict[str, tuple[Any, ...]], path: Path) -> None:
    """UserError naming a field that is there and has none of the values that can be run."""
    for name, allowed in fixed.items():
        if (value := fields.get(name, allowed[0])) not in allowed:
            raise UserError(f"{path}: {name} is {json.dumps(value)[:80]}, and only {json.dumps(allowed[0])} can be run")


def config_of(fields: dict[str, Any], path: Path) -> GPT2Config:
    """The fields of config.json -> the shape. Raises UserError naming the field that cannot be run."""
    check_fixed(fields, FIXED, path)

    def size(name: str, default: int) -> int:
        value = fields.get(name, default)
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{path}: {name} must be a whole number of 1 or more, not {json.dumps(value)}")
        return value

    V, T = size("vocab_size", GPT2_VOCAB_SIZE), size("n_positions", 1024)
    L, NH, C = size("n_layer", 12), size("n_head", 12), size("n_embd", 768)
    if C % NH:
        raise UserError(f"{path}: n_embd {C} is not a multiple of n_head {NH}")
    if (inner := fields.get("n_inner")) not in (None, 4 * C):
        raise UserError(f"{path}: n_inner is {json.dumps(inner)}, and only 4 * n_embd = {4 * C} can be run")
    return GPT2Config(V, T, L, NH, C, tied=fields.get("tie_word_embeddings", True) is not False)


def fields_of(config: GPT2Config) -> dict[str, Any]:
    """Returns the fields of config.json for a GPT-2."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.context,
        "n_ctx": config.context,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.channels,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
        "tie_word_embeddings": config.tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "initializer_range": 0.02,
    }
