"""Shards byte for byte as llm.c has them, and damaged ones refused."""

import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats.llmc.shards import (
    ShardWriter,
    check_vocabulary,
    is_shard,
    open_shard,
    shard_files,
    shard_info,
    write_shard,
)

TOKENS = np.array([5, 0, 50256, 7], np.uint32)


def test_gpt2_shards_byte_for_byte(tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, TOKENS, 50257)
    assert path.read_bytes() == struct.pack("<3i", 20240520, 1, 4) + bytes(1012) + struct.pack("<4H", 5, 0, 50256, 7)
    assert open_shard(path).tolist() == TOKENS.tolist()
    assert open_shard(path).dtype == np.uint16


def test_llama3_shards_byte_for_byte(tmp_path):
    path = tmp_path / "shard.bin"
    write_shard(path, TOKENS + 100_000, 200_000)
    body = struct.pack("<4I", *(TOKENS + 100_000))
    assert path.read_bytes() == struct.pack("<3i", 20240801, 7, 4) + bytes(1012) + body
    assert open_shard(path).tolist() == (TOKENS + 100_000).tolist()


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(257, 2), (65536, 2), (65537, 4)])
def test_the_vocabulary_decides_the_width(tmp_path, vocab_size, itemsize):
    write_shard(tmp_path / "shard.bin", np.array([vocab_size - 1]), vocab_size)
    assert shard_info(tmp_path / "shard.bin").dtype.itemsize == itemsize
    assert open_shard(tmp_path / "shard.bin").tolist() == [vocab_size - 1]


def test_a_shard_is_mapped_and_not_writable(tmp_path):
    write_shard(tmp_path / "shard.bin", TOKENS, 50257)
    tokens = open_shard(tmp_path / "shard.bin")
    assert not tokens.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_tokens_of_another_vocabulary_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="token 50256 in a vocabulary of 300"):
        write_shard(tmp_path / "shard.bin", TOKENS, 300)
    with (
        pytest.raises(ValueError, match="token 50256 in a vocabulary of 300"),
        ShardWriter(tmp_path / "x", 300) as writer,
    ):
        writer.write(TOKENS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, less than a header"),
        (b"text" * 300, r"magic number \d+, version \d+ instead of 20240520, 1"),
        (struct.pack("<3i", 20240520, 7, 4) + bytes(1020), "magic number 20240520, version 7"),
        (struct.pack("<3i", 20240520, 1, 4) + bytes(1019), "1031 bytes where its header says 4 tokens of 2 bytes"),
        (struct.pack("<3i", 20240801, 7, 4) + bytes(1012 + 17), "damaged"),
        (struct.pack("<3i", 20240520, 1, 0) + bytes(1012), "says 0 tokens"),
        (struct.pack("<3i", 20240520, 1, -5) + bytes(1012), "says -5 tokens"),
    ],
)
def test_damaged_shards(tmp_path, data, message):
    path = tmp_path / "bad.bin"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as raised:
        open_shard(path)
    assert str(path) in str(raised.value)


def test_missing_shards(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the shard .*No such file"):
        open_shard(tmp_path / "no.bin")
    with pytest.raises(UserError, match=r"no shards of tokens at .*llmpy prepare"):
        shard_files(str(tmp_path / "*.bin"))
    assert not is_shard(tmp_path / "no.bin")
    assert not is_shard(tmp_path)


WHOLE = struct.pack("<3i", 20240520, 1, 3) + bytes(1012) + struct.pack("<3H", 1, 2, 3)


@given(st.binary(max_size=1100) | st.integers(0, len(WHOLE)).map(lambda n: WHOLE[:n]) | st.binary().map(WHOLE.__add__))
@example(WHOLE)
def test_any_file_is_a_shard_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(data)
    tokens, message = None, ""
    try:
        tokens = open_shard(path)
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert (tokens is not None) == (data == WHOLE)


@pytest.mark.parametrize("bit", range(96))
def test_one_bit_flipped_in_the_header_is_noticed(tmp_path, bit):
    data = bytearray(WHOLE)
    data[bit // 8] ^= 1 << bit % 8
    path = tmp_path / "flipped.bin"
    path.write_bytes(data)
    with pytest.raises(UserError):
        open_shard(path)


def test_ids_beyond_the_vocabulary_are_found_and_placed(monkeypatch):
    monkeypatch.setattr("llmpy.formats.llmc.shards.CHECK_BLOCK", 10)
    tokens = np.zeros(95, np.uint16)
    check_vocabulary(tokens, 1, "x.bin")
    tokens[[94, 93]] = 600, 300
    with pytest.raises(
        UserError, match=r"x.bin: token 93 is 300 .*up to 600.*the vocabulary has 257.*another tokenizer"
    ):
        check_vocabulary(tokens, 257, "x.bin")


@settings(max_examples=25)  # each syncs its files to the disk
@given(st.lists(st.integers(0, 25), max_size=8), st.integers(1, 30))
def test_a_stream_is_written_whole_whatever_its_parts(tmp_path_factory, sizes, shard_tokens):
    folder = tmp_path_factory.mktemp("stream")
    parts = [np.arange(size, dtype=np.uint32) + 10 * i for i, size in enumerate(sizes)]
    with ShardWriter(folder / "text_train", 300, shard_tokens) as writer:
        for part in parts:
            writer.write(part)
    tokens = np.concatenate([np.array([], np.uint32), *parts]).tolist()
    assert writer.tokens == len(tokens)
    assert [token for path in writer.files for token in open_shard(path).tolist()] == tokens
    assert sorted(folder.iterdir()) == writer.files
    if len(tokens) <= shard_tokens:
        assert [path.name for path in writer.files] == ["text_train.bin"] * bool(tokens)
    else:
        assert [path.name for path in writer.files] == [f"text_train_{i:06d}.bin" for i in range(len(writer.files))]
        assert {shard_info(path).tokens for path in writer.files[:-1]} == {shard_tokens}


def test_a_failure_leaves_no_half_a_shard(tmp_path):
    def fail():
        with ShardWriter(tmp_path / "x", 300, 4) as writer:
            writer.write(np.arange(6, dtype=np.uint32))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["x_000000.bin"]
    assert open_shard(tmp_path / "x_000000.bin").tolist() == [0, 1, 2, 3]
