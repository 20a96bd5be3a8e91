"""Chat templates: turn the messages of a conversation into the prompt tokens that a model was trained on.

Templates are Jinja's, in the form that Hugging Face's models bring with them; ours are written in it too. They are
other people's programs: they run in a sandbox that lets them read the messages and no more.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from llmpy.errors import UserError
from llmpy.formats.chat_template_files import read_template_file, template_of
from llmpy.formats.load import LoadedModel
from llmpy.tokenization.base import SentencePieceTokenizer, Tokenizer
from llmpy.tokenization.sentencepiece_files import BOS, EOS

Message = dict[str, str]  # {"role": "system", "user" or "assistant", "content": text}
LLAMA2_VOCAB_SIZE = 32000

# Touvron et al. 2023: the system's text stands inside the first message, and every turn begins with BOS.
_LLAMA2 = (
    "{% set system = namespace(text='') %}{% for message in messages %}"
    "{% if message.role == 'system' %}{% set system.text = '<<SYS>>\n' + message.content + '\n<</SYS>>\n\n' %}"
    "{% elif message.role == 'user' %}{{ bos_token + '[INST] ' + system.text + message.content | trim + ' [/INST]' }}"
    "{% set system.text = '' %}"
    "{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}{{ '<|start_header_id|>' + message.role "
    "+ '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
_CHATML = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content "
    "+ '<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
# By name: the template, and the special tokens that it is made of.
BUILT_IN = {
    "llama2": (_LLAMA2, ("<s>", "</s>")),
    "llama3": (_LLAMA3, ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "chatml": (_CHATML, ("<|im_start|>", "<|im_end|>")),
}


@dataclass
class ChatTemplate:
    """`encode` makes tokens of messages. `name` says where it is from, `names` what it calls bos_token and so on."""

    name: str
    source: str
    tokenizer: Tokenizer
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from jinja2 import TemplateError

        special = self.tokenizer.special_tokens
        # A text of one character cannot be taken apart, so it stays text wherever it stands.
        self._special = {text: token for text, token in special.items() if len(text) > 1}
        longest_first = sorted(map(re.escape, self._special), key=len, reverse=True)
        self._cut = re.compile("|".join(longest_first)) if longest_first else None
        try:
            self._template = _environment().from_string(self.source)
        except TemplateError as error:
            raise UserError(f"the chat template {self.name} is no Jinja template: {_one_line(error)}") from error

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's, and what the template calls eos_token."""
        named = self._special.get(self.names.get("eos_token", ""))
        return (*self.tokenizer.stop_ids, *([] if named is None else [named]))

    def encode(self, messages: Sequence[Message]) -> np.ndarray:
        """messages -> ids, uint32 [n], up to where the answer begins.

        Special tokens are those that the template writes; in what a message says they are the text they look like.
        Raises UserError where the template refuses the messages.
        """
        mark = _mark(messages)
        guarded = [message | {"content": self._guard(message["content"], mark)} for message in messages]
        variables: dict[str, Any] = dict.fromkeys(("bos_token", "eos_token"), "") | self.names
        variables |= {"messages": guarded, "add_generation_prompt": True, "tools": None, "documents": None}
        try:
            text = self._template.render(**variables)
        except Exception as error:  # whatever a program of others may do
            raise UserError(f"the chat template {self.name} refuses this conversation: {_one_line(error)}") from error
        ids: list[np.ndarray] = []
        at = 0
        for match in self._cut.finditer(text) if self._cut else ():
            ids += [self._encode_text(text[at : match.start()], mark), np.array([self._special[match[0]]], np.uint32)]
            at = match.end()
        return np.concatenate([*ids, self._encode_text(text[at:], mark)])

    def _guard(self, content: str, mark: str) -> str:
        """The content with a mark inside everything that would be taken for a special token."""
        for text in self._special:
            content = content.replace(text, text[0] + mark + text[1:])
        return content

    def _encode_text(self, text: str, mark: str) -> np.ndarray:
        return self.tokenizer.encode(text.replace(mark, "")) if text else np.zeros(0, np.uint32)


def find_template(model: LoadedModel, tokenizer: Tokenizer, wanted: str | None = None) -> ChatTemplate:
    """The template that `wanted` names (one of BUILT_IN, or a file of Jinja's), else the one that the model brings,
    else the one that its vocabulary was made for. Raises UserError where there is none."""
    if wanted in BUILT_IN:
        return _built_in(wanted, tokenizer)
    stored = template_of(model.source, model.tokenizer_source)
    own_names = _own_names(tokenizer)
    if wanted is not None:
        source = read_template_file(Path(wanted).expanduser())
        return ChatTemplate(wanted, source, tokenizer, own_names | (stored.names if stored else {}))
    if stored is not None:
        return ChatTemplate(stored.where, stored.source, tokenizer, own_names | stored.names)
    for name in ("llama3", "chatml"):
        if set(BUILT_IN[name][1]) <= tokenizer.special_tokens.keys():
            return _built_in(name, tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.vocab_size == LLAMA2_VOCAB_SIZE:
        return _built_in("llama2", tokenizer)
    raise UserError(
        f"{model.source} has no chat template: was it taught to converse? If so, give --template"
        f" {', '.join(BUILT_IN)} or a file of Jinja's"
    )


def _built_in(name: str, tokenizer: Tokenizer) -> ChatTemplate:
    source, needed = BUILT_IN[name]
    if missing := [text for text in needed if text not in tokenizer.special_tokens]:
        raise UserError(f"the template {name} needs the token {missing[0]}, which the model's vocabulary has not")
    return ChatTemplate(name, source, tokenizer, _own_names(tokenizer))


def _own_names(tokenizer: Tokenizer) -> dict[str, str]:
    """bos_token and eos_token as the tokenizer alone has them; bos_token is the one that every text begins with."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return {"bos_token": tokenizer.pieces.texts[BOS], "eos_token": tokenizer.pieces.texts[EOS]}
    ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.end_of_text}
    return {name: tokenizer.tokens[token].decode() for name, token in ids.items() if token is not None}


def _mark(messages: Sequence[Message]) -> str:
    """A character of the private use area that stands in no message."""
    used = set().union(*(message["content"] for message in messages))
    return next(character for code in range(0xE000, 0xF900) if (character := chr(code)) not in used)


def _environment() -> Any:
    """Jinja as the authors of templates expect it: transformers' settings, filters and functions."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
