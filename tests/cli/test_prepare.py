"""`llmpy prepare`: a short summary on stdout, one line on stderr for what is wrong."""

import pytest

from llmpy.cli import main
from llmpy.formats.llmc.shards import open_shard


@pytest.fixture(autouse=True)
def _in_a_cache_of_its_own(own_cache): ...


def test_with_nothing_else_it_prepares_the_manual(capsys, own_cache):
    assert main(["prepare", "--tokenizer", "bytes"]) == 0
    out, err = capsys.readouterr()
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert list(lines) == ["text", "tokenizer", "tokens", "train", "validate"]
    assert lines["text"].startswith("the Python manual: ")
    assert "bytes, 257 tokens: " in lines["tokenizer"]
    assert str(own_cache) in lines["train"]
    assert err == ""


def test_an_output_folder(capsys, tmp_path):
    (tmp_path / "book.txt").write_text("Some words to read.\n" * 100)
    out = tmp_path / "out"
    arguments = [
        "prepare",
        str(tmp_path / "book.txt"),
        "--tokenizer",
        "bpe:300",
        "--out",
        str(out),
        "--val-fraction",
        "0.5",
    ]
    assert main(arguments) == 0
    assert "1 documents, 2,000 characters" in capsys.readouterr().out
    names = sorted(path.name for path in out.iterdir())
    assert names == ["book_train.bin", "book_val.bin", "manifest.json", "tokenizer.json"]
    assert len(open_shard(out / "book_train.bin")) == pytest.approx(len(open_shard(out / "book_val.bin")), rel=0.2)


def test_json_lines_with_a_field(capsys, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"content": "words and more words"}\n' * 50)
    assert main(["prepare", str(tmp_path / "chats.jsonl"), "--tokenizer", "bytes"]) == 1
    assert "line 1: no text in field 'text'; its fields with text: 'content'" in capsys.readouterr().err
    assert main(["prepare", str(tmp_path / "chats.jsonl"), "--tokenizer", "bytes", "--field", "content"]) == 0
    assert "50 documents" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "no corpus and no file 'nothing'"),
        (["no/such.txt"], "cannot read no/such.txt"),
        (["--tokenizer", "bpe:3"], "N must be from 257"),
        (["--tokenizer", "word"], "no tokenizer 'word'"),
        (["--val-fraction", "2"], "is not between 0 and 1"),
    ],
)
def test_mistakes_are_one_line(capsys, own_cache, arguments, message):
    assert main(["prepare", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("llmpy: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not own_cache.exists()


def test_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["prepare", "--val-fraction", "much"])
    assert stopped.value.code == 2
    assert "--val-fraction" in capsys.readouterr().err
