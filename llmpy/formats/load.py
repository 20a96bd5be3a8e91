"""Model files of every origin: what a file or folder is, and the model in it. `llmpy.load` is here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llmpy.errors import UserError
from llmpy.formats import detect, llama2c, run_folder
from llmpy.formats.gguf import llama as gguf_llama
from llmpy.formats.gguf.file import GGUFFile
from llmpy.formats.gguf.tokenizer import has_tokenizer, read_tokenizer
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface import hub
from llmpy.formats.llmc import model as llmc
from llmpy.formats.pytorch import meta_llama
from llmpy.formats.tensor_map import take_parameters
from llmpy.models.config import ModelConfig
from llmpy.models.gpt2 import GPT2_VOCAB_SIZE
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.parameters import Parameters
from llmpy.tokenization.base import Tokenizer


@dataclass
class LoadedModel:
    """A model ready to generate: `llmpy.Engine(model)`. `kind` says in words what it was read from.

    `stored` are its weights as they lie in the file, mapped where that is possible.
    """

    stored: StoredWeights
    kind: str
    source: Path
    tokenizer_source: Path | str | None  # a file (a GGUF holds its own), "gpt2" where only that fits, or None
    read_parameters: Callable[[], Parameters]

    @property
    def config(self) -> ModelConfig:
        return self.stored.config

    @cached_property
    def parameters(self) -> Parameters:
        """Parameters in float32, read at first use. Raises UserError if memory does not suffice."""
        return self.read_parameters()

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """Read when it is first asked for. Raises UserError where it cannot be had."""
        if self.tokenizer_source is None:
            return None
        if isinstance(self.tokenizer_source, Path):
            return load_tokenizer(self.tokenizer_source)
        return Tokenizer.from_spec(self.tokenizer_source)


def load_model(source: str | Path) -> LoadedModel:
    """A run folder (its newest checkpoint), a checkpoint, a Hugging Face folder or name, a `.bin` of llm.c or llama2.c,
    a GGUF, a `ckpt.pt` of llama2.c, a folder of Meta's.

    Raises UserError, in one line, for everything that is none of these or not whole.
    """
    path = Path(source).expanduser()
    if not path.exists():
        if not hub.is_hub_name(str(source)):
            raise UserError(f"there is no file or folder {path}")
        folder = hub.download_model(str(source))
        return _from_folder(folder, f"Hugging Face model {source}", folder)
    kind = detect.detect(path)
    if kind == detect.RUN:
        step = detect.newest_step(path)
        if step is None:
            raise UserError(f"{path} has no complete checkpoint yet: train on (llmpy train --resume), or give another")
        return _from_folder(step, f"{kind}, {step.name}", path)
    if kind == detect.FOLDER:
        return _from_folder(path, kind, path)
    if kind == detect.SAFETENSORS and (path.parent / huggingface.CONFIG).exists():
        return _from_folder(path.parent, detect.FOLDER, path)
    if kind in (detect.TORCH, detect.META_FOLDER):
        open_model = meta_llama.open_checkpoint if kind == detect.TORCH else meta_llama.open_folder
        opened = open_model(path)
        stored = opened.stored()
        return LoadedModel(stored, kind, path, find_tokenizer(path, stored.config), lambda: opened.read()[1])
    readers = {detect.LLMC_MODEL: llmc, detect.LLAMA2C_MODEL: llama2c, detect.GGUF: gguf_llama}
    if reader := readers.get(kind):
        stored = reader.read_stored(path)
        return LoadedModel(stored, kind, path, find_tokenizer(path, stored.config), lambda: reader.read_model(path)[1])
    raise UserError(f"{path} is {detect.with_article(kind)}, which holds no model to run: {detect.MODELS_HELP}")


def _from_folder(folder: Path, kind: str, source: Path) -> LoadedModel:
    if folder.name.startswith("step_") and not (folder / detect.DONE).exists():
        raise UserError(f"{folder} is not complete (no {detect.DONE} in it): choose another checkpoint")
    if damaged := run_folder.damaged_files(folder, (huggingface.CONFIG, huggingface.WEIGHTS)):
        raise UserError(f"{folder / damaged[0]} is damaged: its checksum is not that of what was written; restore it")
    stored = huggingface.read_stored(folder)

    def read_parameters() -> Parameters:
        parameters = take_parameters(stored.config)
        huggingface.read_parameters(folder, stored.config, parameters)
        return parameters

    return LoadedModel(stored, kind, source, find_tokenizer(folder, stored.config), read_parameters)


def find_tokenizer(model: Path, config: ModelConfig) -> Path | str | None:
    """The tokenizer of a model: in it, beside it, in its run folder, or GPT-2's where the vocabulary has that size."""
    if model.is_dir():
        folders = [model, *([model.parent] if model.name.startswith("step_") else [])]
        paths = [folder / name for folder in folders for name in (hub.TOKENIZER, hub.SENTENCEPIECE)]
        if found := next((path for path in paths if path.exists()), None):
            return found
    elif model.suffix == ".gguf" and has_tokenizer(GGUFFile(model)):
        return model
    else:
        names = [hub.TOKENIZER, "gpt2_tokenizer.bin", "tokenizer.bin", f"tok{config.vocab_size}.bin", hub.SENTENCEPIECE]
        for path in map(model.with_name, names):
            if path.exists() and Tokenizer.load(path).vocab_size == config.vocab_size:
                return path
    # A vocabulary that was padded to a multiple of 64 or 128, as nanoGPT's, is GPT-2's too.
    return "gpt2" if GPT2_VOCAB_SIZE <= config.vocab_size <= 50304 else None


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer's file, or the tokenizer in a GGUF. UserError where there is none."""
    return read_tokenizer(GGUFFile(path)) if path.suffix == ".gguf" else Tokenizer.load(path)
