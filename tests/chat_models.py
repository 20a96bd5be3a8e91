"""A tiny Llama that talks at random in the letters of ASCII, with ChatML's tokens and template."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from llmpy.formats.huggingface import folder as huggingface
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters
from llmpy.tokenization.base import ByteTokenizer
from tests.model_files import llama_parameters

START, END = 257, 258  # <|im_start|>, <|im_end|>
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer_json(*special: str) -> str:
    """The bytes, <|endoftext|>, and special tokens from 257 on."""
    source = json.loads(ByteTokenizer().to_json())
    first = source["added_tokens"][0]
    for token, text in enumerate(special, 257):
        source["added_tokens"].append(first | {"id": token, "content": text})
    return json.dumps(source)


def write_chat_model(
    folder: Path, context: int, template: str | None = TEMPLATE, layers: int = 1, also: bytes = b""
) -> Path:
    """Without a `template` the folder has none. The model speaks letters, and what is in `also`, and never ends an
    answer."""
    config = LlamaConfig(259, context, layers, heads=2, kv_heads=1, channels=8, hidden=12, tied=False)
    parameters = llama_parameters(config)
    speak_letters(parameters, also)
    folder.mkdir(parents=True, exist_ok=True)
    huggingface.write_model(folder, config, parameters, end_of_text=END)
    (folder / "tokenizer.json").write_text(tokenizer_json("<|im_start|>", "<|im_end|>"))
    fields = {"bos_token": "<|im_start|>", "eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}
    if template is not None:
        fields["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    return folder


def speak_letters(parameters: Parameters, also: bytes = b"") -> None:
    """A channel that is always on keeps all tokens but the lower-case letters, and those in `also`, from ever being
    drawn."""
    parameters.wte[:, 0] = 4
    parameters.lnfw[0] = 1
    parameters.lm_headw *= 6  # what was said before matters
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz" + also, np.uint8)
    parameters.lm_headw[:, 0] = -1000
    parameters.lm_headw[letters, 0] = 0
