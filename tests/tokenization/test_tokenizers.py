"""Tokenizers: every kind there and back, the same after saving, the same in other people's libraries."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as huggingface
from hypothesis import example, given
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.tokenization import tokenizer_files
from llmpy.tokenization.base import (
    END_OF_TEXT,
    BytePairTokenizer,
    ByteTokenizer,
    HuggingFaceTokenizer,
    StreamDecoder,
    Tokenizer,
    train_bpe,
)

TEXT = "The cat sat on the mat. It's 1234 o'clock;  the cat's\tmat\r\n\n   is “flat”, naïve 日本語 🙂!\n" * 3
NASTY = [
    "",
    " ",
    "\n\n \n",
    f"a{END_OF_TEXT}b {END_OF_TEXT}",
    "\x00\x1f\x7f\u00a0\u3000\ufeff",
    "👩‍👩‍👧 e\u0301 \U0010ffff",
    "they're THEY'RE it'd",
    "x" * 3000,
    TEXT,
]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train_bpe([TEXT, "some more text about another cat"], 300)


@pytest.fixture(scope="module")
def every_kind(trained) -> list[Tokenizer]:
    return [ByteTokenizer(), trained]


@pytest.fixture
def gpt2(gpt2_cache) -> Tokenizer:
    return Tokenizer.from_spec("gpt2")


def foreign(pre_tokenizer=None, normalizer=None) -> str:
    """A byte-level tokenizer.json that is not cut as GPT-2's, and has its special token first."""
    other = huggingface.Tokenizer(huggingface.models.BPE())
    cut = huggingface.pre_tokenizers.Split(huggingface.Regex(r"\s*\S+"), "isolated")
    level = huggingface.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = pre_tokenizer or huggingface.pre_tokenizers.Sequence([cut, level])
    other.decoder = huggingface.decoders.ByteLevel()
    if normalizer:
        other.normalizer = normalizer
    alphabet = huggingface.pre_tokenizers.ByteLevel.alphabet()
    trainer = huggingface.trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    other.train_from_iterator([TEXT], trainer)
    return other.to_str()


def test_bytes_are_bytes():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé").tolist() == [97, 0xC3, 0xA9]
    assert (tokenizer.vocab_size, tokenizer.end_of_text, tokenizer.name) == (257, 256, "bytes")


@pytest.mark.parametrize("text", NASTY)
def test_there_and_back(every_kind, text):
    for tokenizer in every_kind:
        ids = tokenizer.encode(text)
        assert ids.dtype == np.uint32
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.decode(ids) == text
        assert tokenizer.end_of_text not in ids
        assert not len(ids) or ids.max() < tokenizer.vocab_size


@given(st.text())
def test_there_and_back_with_any_text(every_kind, text):
    for tokenizer in every_kind:
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_half_a_surrogate_pair_becomes_a_replacement_character(every_kind):
    for tokenizer in every_kind:
        assert tokenizer.decode(tokenizer.encode("a\ud83db")) == "a\ufffdb"


def test_white_space_that_the_pattern_engine_gives_up_on(trained):
    text = " " * 1_000_000 + "cat" + "\n" * 700_000 + "cat"
    ids = trained.encode(text)
    assert trained.decode_bytes(ids) == text.encode()
    assert trained.decode(ids[-3:]).endswith("\ncat")


def test_many_texts_at_once_are_what_each_is(every_kind):
    texts = ["", "short", *[TEXT] * 3000, "", *NASTY, " " * 600_000 + "x", "end"]
    for tokenizer in every_kind:
        single = [tokenizer.encode(text) for text in texts]
        for threads in (1, 3, None):
            for a, b in zip(single, tokenizer.encode_batch(texts, threads), strict=True):
                np.testing.assert_array_equal(a, b)
        assert tokenizer.encode_batch([]) == []
        plain = [text for text in NASTY if END_OF_TEXT not in text]
        for text, ids in zip(plain, tokenizer.encode_batch(plain), strict=True):
            assert tokenizer.decode(ids) == text


def test_unknown_ids_are_refused(every_kind):
    for tokenizer in every_kind:
        for token in (-1, tokenizer.vocab_size):
            with pytest.raises(ValueError, match="not in the vocabulary"):
                tokenizer.decode([token])


def test_a_saved_tokenizer_is_the_same(every_kind, tmp_path):
    for tokenizer in every_kind:
        path = tmp_path / "tokenizer.json"
        tokenizer.save(path)
        loaded = Tokenizer.load(path)
        assert type(loaded) is type(tokenizer)
        assert (loaded.name, loaded.tokens) == (tokenizer.name, tokenizer.tokens)
        assert loaded.end_of_text == tokenizer.end_of_text
        assert loaded.fingerprint() == tokenizer.fingerprint()
        assert loaded.to_json() == tokenizer.to_json()
        np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))


@pytest.mark.parametrize("text", NASTY)
def test_hugging_faces_library_reads_what_we_write(every_kind, text):
    for tokenizer in every_kind:
        theirs = huggingface.Tokenizer.from_str(tokenizer.to_json())
        theirs.encode_special_tokens = True
        assert theirs.encode(text).ids == tokenizer.encode(text).tolist()
        assert theirs.get_vocab_size() == tokenizer.vocab_size
        assert theirs.token_to_id(END_OF_TEXT) == tokenizer.end_of_text


def test_transformers_opens_what_we_write(every_kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    for i, tokenizer in enumerate(every_kind):
        folder = tmp_path / str(i)
        tokenizer.save(folder / "tokenizer.json")
        (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs(TEXT)["input_ids"] == tokenizer.encode(TEXT).tolist()
        assert theirs.decode(tokenizer.encode(TEXT).tolist()) == TEXT
        assert theirs.convert_tokens_to_ids(END_OF_TEXT) == tokenizer.end_of_text


def test_gpt2_is_gpt2(gpt2, tmp_path):
    assert (gpt2.vocab_size, gpt2.end_of_text, gpt2.name) == (50257, 50256, "gpt2")
    assert gpt2.encode("Hello, world!").tolist() == [15496, 11, 995, 0]
    assert END_OF_TEXT == gpt2.decode([50256])
    gpt2.save(tmp_path / "tokenizer.json")
    gpt2.save(tmp_path / "tokenizer.bin")
    for name in ("tokenizer.json", "tokenizer.bin"):
        loaded = Tokenizer.load(tmp_path / name)
        assert (loaded.name, loaded.tokens, loaded.end_of_text) == ("gpt2", gpt2.tokens, 50256)
        for text in NASTY:
            np.testing.assert_array_equal(loaded.encode(text), gpt2.encode(text))


def test_gpt2_agrees_with_hugging_faces_library_on_real_text(gpt2, shared_data):
    theirs = huggingface.Tokenizer.from_str(gpt2.to_json())
    theirs.encode_special_tokens = True
    for name in ("tinyshakespeare/input.txt", "tinystories/sample.txt"):
        text = (shared_data / name).read_text(encoding="utf-8")[:200_000]
        assert theirs.encode(text).ids == gpt2.encode(text).tolist()


def test_gpt2_without_a_network_says_what_to_do(monkeypatch, own_cache):
    import tiktoken

    def no_network(_):
        raise ConnectionError("no route")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR", raising=False)
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    with pytest.raises(UserError, match=r"cannot get GPT-2's vocabulary.*TIKTOKEN_CACHE_DIR.*--tokenizer") as raised:
        Tokenizer.from_spec("gpt2")
    assert str(own_cache / "tiktoken") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_training_merges_what_is_frequent(trained):
    assert trained.vocab_size <= 300
    assert sorted(trained.tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert trained.tokens[-1] == END_OF_TEXT.encode()
    assert b" cat" in trained.tokens
    assert len(trained.encode(TEXT)) < len(TEXT.encode()) / 2


def test_training_ends_where_nothing_is_left_to_merge():
    tokenizer = train_bpe(["abab abab abab"], 5000)
    assert 257 < tokenizer.vocab_size < 270
    assert tokenizer.name == f"bpe:{tokenizer.vocab_size}"


def test_training_on_one_thread_gives_the_same_tokens(shared_data):
    program = (
        "import sys; from llmpy.tokenization.base import train_bpe;"
        "print(train_bpe([open(sys.argv[1], encoding='utf-8').read()[:300000]], 1024).fingerprint())"
    )
    path = shared_data / "tinyshakespeare" / "input.txt"
    found = {
        subprocess.run(
            [sys.executable, "-c", program, str(path)],
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "3")
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe:", "N in bpe:N is a whole number"),
        ("bpe:1k", "N in bpe:N is a whole number"),
        ("bpe:-5", "N in bpe:N is a whole number"),
        ("bpe:256", "N must be from 257"),
        ("bpe:99999999", "N must be from 257"),
        ("gpt3", "no tokenizer 'gpt3': give bytes, gpt2, llama2, bpe:N"),
    ],
)
def test_bad_names(spec, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.from_spec(spec, ["text"])


def test_the_smallest_bpe_is_the_bytes_in_another_order():
    tokenizer = train_bpe([TEXT], 257)
    assert tokenizer.vocab_size == 257
    assert len(tokenizer.encode(TEXT)) == len(TEXT.encode())


@pytest.mark.parametrize("normalizer", [None, huggingface.normalizers.NFC()])
def test_somebody_elses_byte_level_tokenizer(tmp_path, normalizer):
    path = tmp_path / "other.json"
    path.write_text(foreign(normalizer=normalizer), encoding="utf-8")
    tokenizer = Tokenizer.from_spec(str(path))
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (tokenizer.end_of_text, tokenizer.name) == (0, "other.json")
    text = f"the cat {END_OF_TEXT} 日本"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert 0 not in ids
    tokenizer.save(tmp_path / "again.json")
    np.testing.assert_array_equal(Tokenizer.load(tmp_path / "again.json").encode(TEXT), tokenizer.encode(TEXT))


def test_what_is_no_tokenizer(tmp_path):
    path = tmp_path / "file"
    for content, message in (
        (b"", "is no tokenizer that llm.py knows"),
        (b"\x00\x01binary", "is no tokenizer that llm.py knows"),
        (b"{", "damaged or no tokenizer.json"),
        (b"{}", "damaged or no tokenizer.json"),
        (b'{"model": {"type": "WordLevel", "vocab": {"a": 0}}, "decoder": null}', "only byte-level tokenizers"),
        (b'{"model": {"vocab": 3}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false}}', "damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            Tokenizer.load(path)
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path)


def test_llmc_files_there_and_back(every_kind, tmp_path):
    for tokenizer in every_kind:
        path = tmp_path / "tokenizer.bin"
        tokenizer.save(path)
        data = path.read_bytes()
        assert np.frombuffer(data[:16], "<u4").tolist() == [20240328, 2, tokenizer.vocab_size, tokenizer.end_of_text]
        loaded = Tokenizer.load(path)
        assert loaded.tokens == tokenizer.tokens
        np.testing.assert_array_equal(loaded.encode(TEXT), tokenizer.encode(TEXT))
        assert tokenizer_files.write_llmc(loaded.tokens, loaded.end_of_text) == data


def test_llmc_version_1_has_no_end_of_text_entry(gpt2, tmp_path):
    data = bytearray(tokenizer_files.write_llmc(gpt2.tokens, gpt2.end_of_text))
    data[4:16] = np.array([1, 50257, 0], "<u4").tobytes()
    (tmp_path / "v1.bin").write_bytes(data)
    assert Tokenizer.load(tmp_path / "v1.bin").end_of_text == 50256


def test_a_token_too_long_for_llmc(tmp_path):
    tokens = [*[bytes([byte]) for byte in range(256)], *[b"a" * 2**i for i in range(1, 9)], END_OF_TEXT.encode()]
    tokenizer = BytePairTokenizer("long", tokens, len(tokens) - 1)
    with pytest.raises(UserError, match="tokens of 1 to 255 bytes"):
        tokenizer.save(tmp_path / "long.bin")


@st.composite
def mutations(draw, data: bytes) -> bytes:
    """The data with a byte changed, cut short, lengthened, or with a stretch of it replaced."""
    at = draw(st.integers(0, len(data) - 1))
    return draw(
        st.sampled_from(
            [
                data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :],
                data[:at],
                data + draw(st.binary(min_size=1, max_size=300)),
                data[:at] + draw(st.binary(max_size=20)) + data[at + 5 :],
            ]
        )
    )


LLMC_FILE = tokenizer_files.write_llmc(ByteTokenizer().tokens, 256)
JSON_FILE = train_bpe([TEXT], 280).to_json().encode()


def check_damaged(data: bytes, path) -> None:
    """A damaged file is refused, or is a file of another vocabulary that works as one."""
    path.write_bytes(data)
    message, ids, tokenizer = "", np.array([]), None
    try:
        tokenizer = Tokenizer.load(path)
        ids = tokenizer.encode("the cat")
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    if tokenizer is not None and not isinstance(
        tokenizer, HuggingFaceTokenizer
    ):  # theirs may drop what it does not know
        assert tokenizer.decode(ids) == "the cat"


@given(st.binary(max_size=2000) | mutations(LLMC_FILE))
@example(LLMC_FILE[:1024])
def test_damaged_llmc_files(tmp_path_factory, data):
    check_damaged(data, tmp_path_factory.getbasetemp() / "damaged.bin")


@given(mutations(JSON_FILE))
def test_damaged_json_files(tmp_path_factory, data):
    check_damaged(data, tmp_path_factory.getbasetemp() / "damaged.json")


@given(st.text())
@example("日本🙂")
def test_a_stream_gives_the_text_and_never_half_a_character(every_kind, text):
    for tokenizer in every_kind:
        stream = StreamDecoder(tokenizer)
        pieces = [stream.feed(token) for token in tokenizer.encode(text)]
        assert "".join(pieces) == text
        assert stream.finish() == ""


def test_a_stream_that_ends_in_the_middle_of_a_character():
    stream = StreamDecoder(ByteTokenizer())
    assert [stream.feed(byte) for byte in "é🙂".encode()[:4]] == ["", "é", "", ""]
    assert stream.finish() == "\ufffd"


def test_merges_that_do_not_exist():
    with pytest.raises(UserError, match=r"token 256 \(b'abc'\) cannot be merged"):
        tokenizer_files.derive_merges([*[bytes([byte]) for byte in range(256)], b"abc"])
