"""GGUF files, written by the official library: metadata, tensors as stored, the model, and nothing but whole files."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats.gguf import llama as gguf_llama
from llmpy.formats.gguf.file import GGUFFile
from llmpy.models.config import RopeScaling
from llmpy.models.llama import LlamaConfig
from llmpy.quant.types import BLOCK_TYPES, dequantize, dequantize_into
from tests.formats.damage import check_one_line, damaged, read_or_refuse
from tests.model_files import LLAMA, llama_parameters

gguf = pytest.importorskip("gguf")
from tests.formats.gguf_files import QUANTS, names, write_llama  # noqa: E402

WIDE = LlamaConfig(vocab_size=37, context=9, layers=2, heads=4, kv_heads=2, channels=64, hidden=96, tied=False)


# ---- types of numbers ----------------------------------------------------------------------------------------------


def random_blocks(number: int, count: int) -> np.ndarray:
    """Any bits, but for the scales, which are made finite."""
    kind = BLOCK_TYPES[number]
    blocks = np.random.default_rng(number).integers(0, 256, (count, kind.bytes), np.uint8)
    for at in {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}.get(kind.name, []):
        blocks[:, at + 1] &= 0b10111111
    if kind.numbers == 1:
        blocks[:, -1] &= 0b10111111
    return blocks


@pytest.mark.parametrize("number", BLOCK_TYPES, ids=lambda number: BLOCK_TYPES[number].name)
def test_numbers_are_those_of_the_library(number):
    kind = BLOCK_TYPES[number]
    theirs = gguf.GGMLQuantizationType(number)
    assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (kind.name, (kind.numbers, kind.bytes))
    data = random_blocks(number, 21).reshape(3, -1)
    if kind.name in ("F32", "F16"):  # the library takes these as they are
        expected = data.view("<f4" if kind.name == "F32" else "<f2").astype(np.float32)
    else:
        expected = gguf.quants.dequantize(data, theirs)
    found = dequantize(kind, data)
    assert (found.dtype, found.shape) == (np.float32, (3, 7 * kind.numbers))
    np.testing.assert_array_equal(found, expected)
    out = np.empty_like(found)
    dequantize_into(out, kind, data)
    np.testing.assert_array_equal(out, expected)


def q4_k_by_hand(block: bytes) -> list[float]:
    """Number by number, as ggml-quants.c says it."""
    d, m = np.frombuffer(block[:4], "<f2").astype(np.float32)
    scales, q, out = block[4:16], block[16:], []
    for j in range(8):
        if j < 4:
            scale, minimum = scales[j] & 63, scales[j + 4] & 63
        else:
            scale = (scales[j + 4] & 15) | (scales[j - 4] >> 6) << 4
            minimum = (scales[j + 4] >> 4) | (scales[j] >> 6) << 4
        chunk = q[32 * (j // 2) : 32 * (j // 2) + 32]
        out += [
            d * np.float32(scale) * np.float32(b >> 4 if j % 2 else b & 15) - m * np.float32(minimum) for b in chunk
        ]
    return out


def test_a_block_of_q4_k_by_hand():
    [block] = random_blocks(12, 1)
    np.testing.assert_allclose(dequantize(BLOCK_TYPES[12], block), q4_k_by_hand(block.tobytes()), rtol=1e-6)


# ---- the file ------------------------------------------------------------------------------------------------------


def test_metadata_of_every_type(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    values = {"uint8": 200, "int8": -3, "uint16": 60000, "int16": -300, "uint32": 2**32 - 1, "int32": -5}
    values |= {
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float32": 0.5,
        "float64": 1e300,
        "bool": True,
        "string": "naïve",
    }
    for name, value in values.items():
        getattr(writer, f"add_{name}")(name, value)
    writer.add_array("numbers", [1, -2, 3])
    writer.add_array("texts", ["a", "", "日本"])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "a.gguf")
    assert {name: file.metadata[name] for name in values} == values
    assert file.metadata["numbers"].tolist() == [1, -2, 3]
    assert file.metadata["texts"] == ["a", "", "日本"]
    assert file.metadata["floats"].tolist() == [0.5, 1.5]
    assert file.chat_template == "{{ messages }}"
    assert file.tensors == {}


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_tensors_lie_where_the_library_puts_them(alignment, tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_custom_alignment(alignment)
    arrays = {
        "x": np.arange(15, dtype=np.float32).reshape(3, 5),
        "y": np.ones((2, 3, 4), np.float16),
        "z": np.ones(3, np.float32),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GGUFFile(tmp_path / "a.gguf")
    assert list(file.tensors) == list(arrays)
    for name, array in arrays.items():
        tensor = file.tensors[name]
        assert tensor.shape == array.shape
        np.testing.assert_array_equal(tensor.dequantize(), array)
        assert not tensor.data.flags.writeable


# ---- the model in it -----------------------------------------------------------------------------------------------

KINDS = {
    "llama": LLAMA,
    "head of its own": replace(LLAMA, tied=False, norm_eps=1e-6, rope_theta=500000.0),
    "qwen2": replace(LLAMA, rope_interleaved=False, qkv_bias=True),
    "head size": replace(LLAMA, head_size=10),
}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_a_model_comes_back(config, tmp_path):
    parameters = llama_parameters(config)
    found, loaded = gguf_llama.read_model(write_llama(tmp_path / "a.gguf", config, parameters))
    assert found == config
    np.testing.assert_array_equal(loaded.flat, parameters.flat)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_quantized_weights_are_kept_as_they_are_and_read_as_float32(kind, tmp_path):
    parameters = llama_parameters(WIDE)
    path = write_llama(tmp_path / "a.gguf", WIDE, parameters, QUANTS[kind])
    tensor = GGUFFile(path).tensors["blk.1.ffn_gate.weight"]
    assert (tensor.kind.name, tensor.shape) == (kind, (96, 64))
    assert tensor.data.shape == (96, 64 // tensor.kind.numbers * tensor.kind.bytes)
    config, loaded = gguf_llama.read_model(path)
    assert config == WIDE
    np.testing.assert_allclose(loaded.flat, parameters.flat, rtol=0, atol=0.2 if kind.startswith("Q4") else 0.02)
    expected = gguf.quants.dequantize(gguf.quants.quantize(parameters.gateupw[1], QUANTS[kind]), QUANTS[kind])
    np.testing.assert_array_equal(loaded.gateupw[1], expected)


def test_names_are_those_of_the_library():
    config = replace(LLAMA, tied=False, qkv_bias=True)
    known = names()
    for part in gguf_llama.parts(config):
        stem, _, suffix = part.huggingface.rpartition(".")
        assert part.renamed(gguf_llama.NAMES) == f"{known[stem]}.{suffix}"


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_scaling_of_llama_3_is_found_by_its_factors(factor, tmp_path):
    config = replace(LLAMA, channels=384, head_size=64, rope_theta=500000.0)
    scaling = RopeScaling(factor)
    factors = gguf_llama.rope_factors(config, scaling)
    assert factors[0] == 1
    assert factors[-1] == factor
    assert len(set(factors.round(4))) > 3  # some are between the two
    path = write_llama(tmp_path / "a.gguf", config, llama_parameters(config), tensors={"rope_freqs.weight": factors})
    assert gguf_llama.read_config(GGUFFile(path)) == replace(config, rope_scaling=scaling)
    ones = {"rope_freqs.weight": np.ones(32)}
    path = write_llama(tmp_path / "b.gguf", config, llama_parameters(config), tensors=ones)
    assert gguf_llama.read_config(GGUFFile(path)) == config
    odd = {"rope_freqs.weight": factors + 0.5}
    path = write_llama(tmp_path / "c.gguf", config, llama_parameters(config), tensors=odd)
    with pytest.raises(UserError, match="not those of Llama 3"):
        gguf_llama.read_config(GGUFFile(path))


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({"expert_count": 8}, "mixture of experts"),
        ({"rope.scaling.type": "yarn"}, "yarn"),
        ({"block_count": None}, "llama.block_count is missing"),
        ({"block_count": 4}, "lacks blk.3"),
        ({"block_count": 2}, "holds blk.2"),
        ({"attention.head_count": 5}, "not a multiple"),
        ({"attention.head_count": [6, 6, 6]}, "no single value"),
        ({"embedding_length": 2**32 - 1}, "channels"),
        ({"feed_forward_length": 24}, "has shape"),
        ({"rope.dimension_count": 4}, "rotate 4 of 6"),
        ({"attention.layer_norm_rms_epsilon": "small"}, "norm_eps"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "norm_eps"),
    ],
)
def test_what_cannot_be_run_is_named(metadata, why, tmp_path):
    path = write_llama(tmp_path / "a.gguf", LLAMA, llama_parameters(), metadata=metadata)
    with pytest.raises(UserError, match=why) as caught:
        gguf_llama.read_model(path)
    check_one_line(str(caught.value))


def test_other_architectures_and_tensors_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma2")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="architecture is 'gemma2'"):
        gguf_llama.read_model(tmp_path / "a.gguf")
    extra = {"blk.0.attn_q_norm.weight": np.ones(6)}
    write_llama(tmp_path / "b.gguf", LLAMA, llama_parameters(), tensors=extra)
    with pytest.raises(UserError, match="attn_q_norm"):
        gguf_llama.read_model(tmp_path / "b.gguf")


# ---- damage --------------------------------------------------------------------------------------------------------


def header(version: int = 3, tensors: int = 0, entries: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + rest


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def info(name: bytes = b"x", shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot read"),
        (b"GGML" + bytes(40), "no GGUF file"),
        (b"GGUF", "does not end"),
        (header(1), "version 1: readable"),
        (header(3 << 24), "big-endian"),
        (header(3, 2**60), "do not fit"),
        (header(3, 0, 2**60), "do not fit"),
        (header(3, 0, 1, text(b"k") + struct.pack("<I", 13)), "entry of type 13"),
        (header(3, 0, 1, text(b"k") + struct.pack("<IIQ", 9, 8, 2**60)), "array of"),
        (header(3, 0, 1, text(b"k") + struct.pack("<IIQ", 9, 0, 2**60)), "does not end"),
        (header(3, 0, 1, text(b"k") + struct.pack("<IIQ", 9, 9, 1)), "array of type 9"),
        (header(3, 0, 1, text(b"k") + struct.pack("<IIQQ", 9, 8, 1, 2**60)), "leads out of the file"),
        (header(3, 0, 1, text(b"\xff") + struct.pack("<IB", 0, 1)), "not UTF-8"),
        (header(3, 0, 2, 2 * (text(b"k") + struct.pack("<IB", 0, 1))), "twice"),
        (header(3, 0, 1, struct.pack("<Q", 2**63)), "does not end"),
        (header(3, 0, 1, text(b"general.alignment") + struct.pack("<II", 4, 0)), "alignment"),
        (header(3, 1, 0, info(kind=13)), "of type Q5_K, readable are F32"),
        (header(3, 1, 0, info(kind=99)), "of type 99"),
        (header(3, 1, 0, info(shape=(1, 1, 1, 1, 1))), "5 axes"),
        (header(3, 1, 0, info(shape=(0,))), "has shape"),
        (header(3, 1, 0, info(shape=(33,), kind=8)), "has shape"),
        (header(3, 1, 0, info(shape=(2**40, 2**40))), "cut off"),
        (header(3, 1, 0, info(offset=2**63)), "cut off"),
        (header(3, 2, 0, info() + info()).ljust(200), "twice"),
        (header(3, 2, 0, info(b"a") + info(b"b", offset=8)).ljust(200), "twice, or lies on another"),
    ],
)
def test_what_is_damaged_is_one_line(data, why, tmp_path):
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(UserError, match=why) as caught:
        GGUFFile(tmp_path / "a.gguf")
    check_one_line(str(caught.value))


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_damage_is_refused_or_is_a_model(kind, tmp_path, small_memory):
    path = write_llama(tmp_path / "a.gguf", WIDE, llama_parameters(WIDE), QUANTS[kind])
    good = path.read_bytes()
    small_memory(path)

    @settings(max_examples=200)
    @given(damaged(good, 2500))
    def check(data):
        read_or_refuse(gguf_llama.read_model, path, data)

    check()


@given(rest=st.binary(max_size=200), tensors=st.integers(0, 3), entries=st.integers(0, 3))
def test_any_header_is_refused_or_read(rest, tensors, entries, tmp_path):
    read_or_refuse(GGUFFile, tmp_path / "x", header(3, tensors, entries, rest))
