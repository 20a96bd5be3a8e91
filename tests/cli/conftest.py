"""A small model on the disk, with and without its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmpy.cli import main
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.llmc import model as llmc
from llmpy.tokenization.base import ByteTokenizer
from tests.model_files import BYTES, make_model


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    """`folder` of Hugging Face with a tokenizer, and `model.bin` of llm.c without one: the same model of bytes."""
    folder = tmp_path_factory.mktemp("models")
    model = make_model(BYTES)
    huggingface.write_model(folder / "folder", BYTES, model.parameters, end_of_text=256)
    ByteTokenizer().save(folder / "folder" / "tokenizer.json")
    llmc.write_model(folder / "model.bin", BYTES, model.parameters)
    return folder


@pytest.fixture
def convert(capsys):
    """`convert(*arguments)` -> (status, stderr)"""

    def convert(*arguments):
        status = main(["convert", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        return status, err

    return convert
