"""SentencePiece vocabularies: the same tokens as the library and as llama2.c, the same bytes in their files."""

import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers as huggingface
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.tokenization import sentencepiece_files as files
from llmpy.tokenization.base import SentencePieceTokenizer, StreamDecoder, Tokenizer, train_sentencepiece
from tests.formats.damage import check_one_line, damaged

TEXT = "The cat sat on the mat. It's 1234 o'clock;  the cat's\tmat\n\n   is “flat”, naïve 日本語 🙂!\n" * 3
TEXTS = ["", " ", "  two", "Once upon a time", "a\n\nb ", TEXT, "<s> </s> <0x0A> <unk>", "x" * 500]


@pytest.fixture(scope="session")
def trained() -> SentencePieceTokenizer:
    return train_sentencepiece([TEXT, "some more text about another cat"], 330)


@pytest.fixture(params=["tokenizer.bin", "tokenizer.model", "tok512.bin"], scope="session")
def real(request, shared_data) -> Tokenizer:
    return Tokenizer.load(shared_data / "llama2c" / request.param)


def encode_as_llama2c(pieces: files.Pieces, text: str) -> list[int]:
    """`encode` of run.c, step by step: characters, bytes for those unknown, then the best pair until there is none."""
    ids = {text: i for i, text in reversed(list(enumerate(t.replace("\u2581", " ") for t in pieces.texts)))}
    out = [ids[" "]] if text else []
    for character in text:
        out += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
    texts = [text.replace("\u2581", " ") for text in pieces.texts]
    while True:
        best, place = -1e10, None
        for i in range(len(out) - 1):
            merged = ids.get(texts[out[i]] + texts[out[i + 1]])
            if merged is not None and pieces.scores[merged] > best:
                best, place = pieces.scores[merged], (i, merged)
        if place is None:
            return out
        out[place[0] : place[0] + 2] = [place[1]]


def test_the_tokens_are_those_of_the_library_on_the_tiny_stories(real, shared_data):
    text = (shared_data / "tinystories" / "sample.txt").read_text(encoding="utf-8")[:300_000]
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(shared_data / "llama2c" / "tokenizer.model"))
    ids = real.encode(text)
    assert real.decode(ids) == text
    if real.vocab_size == 32000:
        assert ids.tolist() == theirs.encode(text)
    assert real.encode(text[:400]).tolist() == encode_as_llama2c(real.pieces, text[:400])


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_are_those_of_llama2c(trained, real, text):
    for tokenizer in (trained, real):
        assert tokenizer.encode(text).tolist() == encode_as_llama2c(tokenizer.pieces, text)


@given(st.text(st.characters(exclude_characters="\0\u2581", exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_encoded_as_llama2c_does_and_comes_back(trained, text):
    ids = trained.encode(text)
    assert ids.tolist() == encode_as_llama2c(trained.pieces, text)
    assert trained.decode(ids) == text
    stream = StreamDecoder(trained)
    assert "".join(stream.feed(token) for token in ids) + stream.finish() == text


def test_the_bin_and_the_model_are_the_same_and_llama2cs_file_comes_back_byte_for_byte(shared_data, tmp_path):
    folder = shared_data / "llama2c"
    of_bin, of_model = (Tokenizer.load(folder / name) for name in ("tokenizer.bin", "tokenizer.model"))
    assert of_bin.pieces == of_model.pieces
    assert of_bin.vocab_size == 32000
    for name, tokenizer in (("tokenizer.bin", of_model), ("tok512.bin", Tokenizer.load(folder / "tok512.bin"))):
        tokenizer.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_known_tokens(shared_data):
    """A prompt and its tokens from llama2.c's test.c."""
    tokenizer = Tokenizer.load(shared_data / "llama2c" / "tokenizer.bin")
    assert tokenizer.encode("I believe the meaning of life is").tolist() == [306, 4658, 278, 6593, 310, 2834, 338]
    assert (tokenizer.bos, tokenizer.end_of_text, tokenizer.stop_ids) == (1, 1, (1, 2))
    assert tokenizer.token_bytes(13) == b"\n"


def test_a_space_is_stripped_after_bos_alone(trained):
    ids = trained.encode("the cat")
    assert trained.decode_bytes([1, *ids]) == b"<s>the cat"
    assert trained.decode_bytes([*ids, *ids]) == b"the cat the cat"
    assert StreamDecoder(trained, 1).feed(ids[0]) == trained.decode(ids[:1])
    assert StreamDecoder(trained, int(ids[0])).feed(ids[0]) == " " + trained.decode(ids[:1])


@pytest.mark.parametrize("name", ["tokenizer.bin", "tokenizer.model", "tokenizer.json"])
def test_a_saved_tokenizer_is_the_same(name, trained, tmp_path):
    trained.save(tmp_path / name)
    loaded = Tokenizer.load(tmp_path / name)
    assert type(loaded) is SentencePieceTokenizer
    assert (loaded.name, loaded.fingerprint()) == (trained.name, trained.fingerprint())
    assert loaded.pieces.texts == trained.pieces.texts
    assert loaded.pieces.kinds == trained.pieces.kinds
    assert loaded.to_json() == trained.to_json()
    for text in TEXTS:
        assert loaded.encode(text).tolist() == trained.encode(text).tolist()


@pytest.mark.parametrize("text", TEXTS)
def test_hugging_faces_library_reads_what_we_write(trained, text):
    theirs = huggingface.Tokenizer.from_str(trained.to_json())
    theirs.encode_special_tokens = True
    ids = theirs.encode(text).ids
    assert ids == [1, *trained.encode(text)]
    assert theirs.decode(ids) == text


def test_the_model_is_one_for_the_library(trained, tmp_path):
    trained.save(tmp_path / "tokenizer.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert theirs.encode(TEXT) == trained.encode(TEXT).tolist()
    assert (theirs.unk_id(), theirs.bos_id(), theirs.eos_id(), theirs.pad_id()) == (0, 1, 2, -1)
    assert theirs.decode(theirs.encode(TEXT)) == TEXT


def test_training_is_that_of_llama2c(shared_data, tmp_path):
    """There: a file of the text, these arguments; tokenizer.model is what comes out."""
    text = (shared_data / "tinystories" / "sample.txt").read_text(encoding="utf-8")[:100_000]
    (tmp_path / "tiny.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "tiny.txt"),
        model_prefix=str(tmp_path / "tok"),
        model_type="bpe",
        vocab_size=600,
        self_test_sample_size=0,
        input_format="text",
        character_coverage=1.0,
        num_threads=2,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        byte_fallback=True,
        unk_surface=r" \342\201\207 ",
        normalization_rule_name="identity",
        minloglevel=2,
    )
    ours = Tokenizer.from_spec("sentencepiece:600", [text[:50_000], text[50_000:]])
    theirs = Tokenizer.load(tmp_path / "tok.model")
    assert len(set(ours.pieces.texts) & set(theirs.pieces.texts)) > 595  # the cut is in the middle of a line
    assert theirs.pieces.remove_extra_whitespaces
    assert Tokenizer.from_spec("sentencepiece:600", [text]).pieces == replace(
        theirs.pieces, remove_extra_whitespaces=False
    )
    assert ours.name == "sentencepiece:600"


def test_a_text_that_has_no_more_to_merge_gives_fewer_tokens():
    tokenizer = Tokenizer.from_spec("sentencepiece:100000", [TEXT])
    assert 260 < tokenizer.vocab_size < 1000
    assert tokenizer.name == f"sentencepiece:{tokenizer.vocab_size}"


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("sentencepiece:260", "cannot train sentencepiece:260"),
        ("sentencepiece:259", "N must be from 260"),
        ("sentencepiece:x", "N in sentencepiece:N is a whole number, like sentencepiece:1024"),
    ],
)
def test_what_cannot_be_trained_is_one_line(spec, why, capfd):
    with pytest.raises(UserError, match=why) as caught:
        Tokenizer.from_spec(spec, [TEXT])
    check_one_line(str(caught.value))
    assert capfd.readouterr() == ("", "")


def message(*fields: tuple[int, object]) -> bytes:
    """A message of protobuf, put together by hand: numbers as varints, bytes with their length, floats in 4 bytes."""
    out = b""
    for number, value in fields:
        if isinstance(value, float):
            out += bytes([number << 3 | 5]) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += bytes([number << 3, value])
        else:
            out += bytes([number << 3 | 2, len(value)]) + value
    return out


PIECES = [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), ("\u2581".encode(), 1), (b"a", 1)]


def model_of(trainer=((3, 2),), normalizer=((4, 0),), pieces=PIECES) -> bytes:
    whole = [(1, message((1, text), (2, -1.0), (3, kind))) for text, kind in pieces]
    return message(*whole, (2, message(*trainer)), (3, message(*normalizer)))


def test_a_model_put_together_by_hand(tmp_path):
    (tmp_path / "a.model").write_bytes(model_of())
    tokenizer = Tokenizer.load(tmp_path / "a.model")
    assert tokenizer.encode("a a").tolist() == [3, 4, 3, 4]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (model_of(trainer=[(3, 1)]), "kind 1, and only byte-pair"),
        (model_of(trainer=[]), "kind 1, and only byte-pair"),
        (model_of(normalizer=[(2, b"map"), (4, 0)]), "changes text"),
        (model_of(normalizer=[(5, 0)]), "changes text"),
        (model_of(pieces=PIECES[1:]), "4 pieces, 0 unknown"),
        (model_of(pieces=[*PIECES, (b"a", 1)]), "stands twice"),
        (model_of(pieces=[*PIECES, (b"", 1)]), "is empty"),
        (model_of(pieces=[*PIECES, (b"b", 7)]), "of kind 7"),
        (model_of(pieces=[*PIECES, (b"<0x00>", 6)]), "1 of the 256 bytes"),
        (model_of(pieces=[*PIECES, (b"\xff", 1)]), "damaged, or no SentencePiece model"),
        (b"", "kind 1"),
    ],
)
def test_another_kind_of_model_is_refused(data, why, tmp_path):
    (tmp_path / "a.model").write_bytes(data)
    with pytest.raises(UserError, match=why) as caught:
        Tokenizer.load(tmp_path / "a.model")
    check_one_line(str(caught.value))


def test_a_model_without_a_dummy_space(tmp_path):
    (tmp_path / "a.model").write_bytes(model_of(normalizer=[(3, 0), (4, 0)]))
    tokenizer = Tokenizer.load(tmp_path / "a.model")
    assert tokenizer.encode("a a").tolist() == [4, 3, 4]
    assert tokenizer.decode([3, 4]) == " a"
    with pytest.raises(UserError, match="space before every text"):
        tokenizer.save(tmp_path / "a.bin")


def test_a_model_that_removes_spaces(trained, tmp_path):
    SentencePieceTokenizer(replace(trained.pieces, remove_extra_whitespaces=True)).save(tmp_path / "a.model")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "a.model"))
    ours = Tokenizer.load(tmp_path / "a.model")
    ours.save(tmp_path / "a.json")
    of_json = huggingface.Tokenizer.from_file(str(tmp_path / "a.json"))
    of_json.encode_special_tokens = True
    for text in TEXTS:
        assert ours.encode(text).tolist() == theirs.encode(text)
        assert of_json.encode(text, add_special_tokens=False).ids == theirs.encode(text)
        assert Tokenizer.load(tmp_path / "a.json").encode(text).tolist() == theirs.encode(text)


def test_only_sentencepiece_is_saved_as_a_model(tmp_path):
    with pytest.raises(UserError, match="no SentencePiece model"):
        Tokenizer.from_spec("bytes").save(tmp_path / "a.model")


SMALL = train_sentencepiece([TEXT], 320).pieces


@pytest.mark.parametrize("name", ["a.bin", "a.model", "a.json"])
def test_damaged_files_are_refused_or_are_vocabularies(name, tmp_path):
    good = SentencePieceTokenizer(SMALL)
    good.save(tmp_path / name)
    data = (tmp_path / name).read_bytes()

    @settings(max_examples=150)
    @given(damaged(data, len(data)))
    def check(mutated):
        Path(tmp_path / name).write_bytes(mutated)
        try:
            found = Tokenizer.load(tmp_path / name)
        except UserError as error:
            check_one_line(str(error))
        else:
            assert isinstance(found.encode("the cat"), np.ndarray)

    check()
