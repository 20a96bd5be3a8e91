"""llama2.c's model files, versions 0, 1 and 2: as documented, the real ones of others, and nothing but whole files."""

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats import llama2c
from llmpy.formats.tensor_map import parts, reorder
from llmpy.models.llama import LlamaConfig
from llmpy.models.presets import from_descriptor
from tests.formats.damage import damaged, read_or_refuse
from tests.model_files import LLAMA, llama_parameters

UNTIED = replace(LLAMA, tied=False)
VERSIONS = [(version, config) for version in (0, 1, 2) for config in (LLAMA, UNTIED)]


def tensors_of(c: LlamaConfig, p) -> dict[str, np.ndarray]:
    """Under llama2.c's names, the layers first."""
    q, kv, H = c.channels, c.kv_heads * c.head_size, c.hidden
    found = {"tok": p.wte, "att": p.ln1w, "wo": p.attprojw, "ffn": p.ln2w, "w2": p.downw, "norm": p.lnfw}
    found |= {"wq": p.qkvw[:, :q], "wk": p.qkvw[:, q : q + kv], "wv": p.qkvw[:, q + kv :]}
    found |= {"w1": p.gateupw[:, :H], "w3": p.gateupw[:, H:]}
    return found | ({} if c.tied else {"out": p.lm_headw})


def quantized(tensor: np.ndarray, group: int) -> bytes:
    """One tensor of version 2, group by group."""
    values, scales = [], []
    for row in tensor.reshape(-1, group):
        scale = np.float32(max(abs(row)) / np.float32(127))
        scales.append(scale)
        values += [int(np.round(x / scale)) for x in row]
    return struct.pack(f"<{len(values)}b", *values) + struct.pack(f"<{len(scales)}f", *scales)


def as_documented(c: LlamaConfig, p, version: int) -> bytes:
    """The file as formats.md of the project describes it, put together by hand."""
    shape = (c.channels, c.hidden, c.layers, c.heads, c.kv_heads)
    t = tensors_of(c, p)
    if version == 0:
        data = struct.pack("<7i", *shape, c.vocab_size if c.tied else -c.vocab_size, c.context)
        names = ["tok", "att", "wq", "wk", "wv", "wo", "ffn", "w1", "w2", "w3", "norm"]
        data += b"".join(t[name].astype("<f4").tobytes() for name in names)
        half = c.head_size // 2
        angles = [[m / 10000 ** (2 * i / c.head_size) for i in range(half)] for m in range(c.context)]
        data += np.cos(angles).astype("<f4").tobytes() + np.sin(angles).astype("<f4").tobytes()
        return data + (b"" if c.tied else t["out"].tobytes())
    data = struct.pack("<Ii7iB", 0x616B3432, version, *shape, c.vocab_size, c.context, c.tied)
    if version == 2:
        data += struct.pack("<i", 4)
    data = data.ljust(256, b"\0")
    data += b"".join(t[name].tobytes() for name in ("att", "ffn", "norm"))
    for name in ["tok", "wq", "wk", "wv", "wo", "w1", "w2", "w3", *(["out"] if "out" in t else [])]:
        layers = t[name] if t[name].ndim == 3 else t[name][None]
        data += b"".join(quantized(layer, 4) if version == 2 else layer.tobytes() for layer in layers)
    return data


@pytest.mark.parametrize(("version", "config"), VERSIONS)
def test_the_file_is_byte_for_byte_as_documented(version, config, tmp_path):
    parameters = llama_parameters(config)
    llama2c.write_model(tmp_path / "m.bin", config, parameters, version)
    ours, expected = (tmp_path / "m.bin").read_bytes(), as_documented(config, parameters, version)
    if version == 0:  # cosines and sines may differ in the last bit
        ours, expected = (np.frombuffer(data, "<f4") for data in (ours, expected))
        np.testing.assert_allclose(ours[7:], expected[7:], rtol=0, atol=2e-6)
        different = np.flatnonzero(ours != expected)
        assert len(different) < 2 * config.context * config.head_size
    else:
        assert ours == expected


@pytest.mark.parametrize(("version", "config"), VERSIONS)
def test_a_model_comes_back(version, config, tmp_path):
    parameters = llama_parameters(config)
    (tmp_path / "m.bin").write_bytes(as_documented(config, parameters, version))
    found, loaded = llama2c.read_model(tmp_path / "m.bin")
    assert found == config
    np.testing.assert_allclose(loaded.flat, parameters.flat, rtol=0, atol=0.006 if version == 2 else 0)
    llama2c.write_model(tmp_path / "again.bin", found, loaded, version)
    again = llama2c.read_model(tmp_path / "again.bin")[1]
    np.testing.assert_array_equal(loaded.flat, again.flat)


@settings(max_examples=25)
@given(
    version=st.sampled_from([0, 1, 2]),
    sizes=st.tuples(st.integers(1, 50), st.integers(1, 9), st.integers(1, 3)),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2), (3, 3)]),
    half=st.integers(1, 5),
    hidden=st.integers(1, 40),
    tied=st.booleans(),
)
def test_any_shape_comes_back(version, sizes, heads, half, hidden, tied, tmp_path):
    config = LlamaConfig(*sizes, *heads, channels=heads[0] * half * 2, hidden=hidden, tied=tied)
    parameters = llama_parameters(config)
    llama2c.write_model(tmp_path / "m.bin", config, parameters, version)
    found, loaded = llama2c.read_model(tmp_path / "m.bin")
    assert found == config
    np.testing.assert_allclose(loaded.flat, parameters.flat, rtol=0, atol=0.01 if version == 2 else 0)


def test_rows_in_the_order_of_hugging_face_are_put_into_llama2cs(tmp_path):
    halves = replace(LLAMA, rope_interleaved=False)
    parameters = llama_parameters(halves)
    llama2c.write_model(tmp_path / "m.bin", halves, parameters)
    _, loaded = llama2c.read_model(tmp_path / "m.bin")
    hs, half = LLAMA.head_size, LLAMA.head_size // 2
    for head in range(LLAMA.heads + LLAMA.kv_heads):
        ours, theirs = (p.qkvw[:, head * hs : (head + 1) * hs] for p in (loaded, parameters))
        np.testing.assert_array_equal(ours[:, 0::2], theirs[:, :half])
        np.testing.assert_array_equal(ours[:, 1::2], theirs[:, half:])
    rest = (LLAMA.heads + LLAMA.kv_heads) * hs
    np.testing.assert_array_equal(loaded.qkvw[:, rest:], parameters.qkvw[:, rest:])
    rows = np.arange(24)
    np.testing.assert_array_equal(reorder(reorder(rows, 3, True), 3, False), rows)


def test_the_real_files_of_others(shared_data, tmp_path):
    folder = shared_data / "llama2c"
    config, parameters = llama2c.read_model(folder / "stories260K.bin")
    assert (config.vocab_size, config.context, config.layers, config.heads) == (512, 512, 5, 8)
    assert (config.kv_heads, config.channels, config.hidden, config.tied) == (4, 64, 172, True)
    config1, parameters1 = llama2c.read_model(folder / "stories260K_v1.bin")
    assert config1 == config
    np.testing.assert_array_equal(parameters1.flat, parameters.flat)
    llama2c.write_model(tmp_path / "v1.bin", config, parameters, 1)
    assert (tmp_path / "v1.bin").read_bytes() == (folder / "stories260K_v1.bin").read_bytes()
    llama2c.write_model(tmp_path / "v0.bin", config, parameters, 0)
    ours, theirs = (np.fromfile(path, "<f4", offset=28) for path in (tmp_path / "v0.bin", folder / "stories260K.bin"))
    table = 512 * 8  # the last numbers, which no reader reads; PyTorch's cosines are not correctly rounded
    np.testing.assert_array_equal(ours[:-table], theirs[:-table])
    np.testing.assert_allclose(ours[-table:], theirs[-table:], rtol=0, atol=6e-8)


def test_files_of_known_models_have_the_sizes_known(tmp_path):
    sizes = {"260K": 1_056_540, "15M": 60_816_028, "42M": 167_020_572, "110M": 438_381_596}
    configs = {name: from_descriptor(f"llama:{name}") for name in sizes}
    llama2 = LlamaConfig(32000, 2048, 32, 32, 32, 4096, 11008, tied=False)
    for config, size in [*zip(configs.values(), sizes.values(), strict=True), (llama2, 26_954_711_068)]:
        assert llama2c._length(llama2c.Header(0, config)) == size


def test_quantized_tensors_are_as_they_are_stored(tmp_path):
    parameters = llama_parameters(UNTIED)
    llama2c.write_model(tmp_path / "m.bin", UNTIED, parameters, 2)
    file = llama2c.Llama2cFile(tmp_path / "m.bin")
    for part in parts(UNTIED):
        stored, expected = file.stored(part), part.of(parameters)
        if isinstance(stored, llama2c.Q8Tensor):
            assert (stored.values.dtype, stored.values.shape) == (np.int8, part.shape)
            assert (stored.scales.dtype, stored.scales.shape) == (np.float32, (*part.shape[:-1], part.shape[-1] // 4))
            np.testing.assert_allclose(stored.dequantize(), expected, rtol=0, atol=0.006)
        else:
            np.testing.assert_array_equal(stored, expected)
            assert not stored.flags.writeable


def test_groups_divide_every_row():
    assert llama2c.group_size_for(from_descriptor("llama:15M")) == 32
    # 512 channels, 1376 hidden: 64 would cut groups across rows
    assert llama2c.group_size_for(from_descriptor("llama:42M")) == 32
    assert llama2c.group_size_for(from_descriptor("llama:110M")) == 64
    assert llama2c.group_size_for(LlamaConfig(9, channels=6, heads=3, hidden=7)) == 1


def test_a_group_of_zeros():
    zeros = llama2c.quantize(np.zeros((2, 8), np.float32), 4)
    assert not zeros.dequantize().any()
    halves = llama2c.quantize(np.array([[127, 0.5, 1.5, 2.5]], np.float32), 4)
    assert halves.values.tolist() == [[127, 0, 2, 2]]


@pytest.mark.parametrize(
    "field",
    [{"rope_theta": 5e5}, {"norm_eps": 1e-6}, {"qkv_bias": True}, {"head_size": 8}],
    ids=lambda field: next(iter(field)),
)
def test_what_llama2c_cannot_run_is_not_written(field, tmp_path):
    config = replace(LLAMA, **field)
    with pytest.raises(UserError, match=next(iter(field))):
        llama2c.write_model(tmp_path / "m.bin", config, llama_parameters(config))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("version", "index", "value", "why"),
    [
        (0, 0, 35, "damaged header: channels 35 is not a multiple of heads 6"),
        (0, 0, -36, "damaged header: channels"),
        (0, 1, 0, "damaged header: hidden"),
        (0, 2, 2**31 - 1, "cut off"),
        (0, 2, 2, "too long"),
        (0, 4, 0, "damaged header: kv_heads"),
        (0, 4, 4, "damaged header: heads 6 is not"),
        (0, 5, -37, "cut off"),
        (0, 6, 10, "cut off"),
        (0, 6, 0, "damaged header: context"),
        (1, 0, 5, "damaged header|cut off|too long"),
        (1, 1, 3, "version 3"),
        (1, 7, -37, "damaged header: vocab_size"),
        (2, 4, 4, "too long|cut off"),
    ],
)
def test_a_flipped_header_is_refused(version, index, value, why, tmp_path):
    data = bytearray(as_documented(LLAMA, llama_parameters(), version))
    data[4 * index : 4 * index + 4] = struct.pack("<i", value)
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(UserError, match=why):
        llama2c.read_model(tmp_path / "m.bin")


@pytest.mark.parametrize("group", [0, -4, 8, 3, 2**31 - 1])
def test_a_group_that_does_not_divide_the_rows_is_refused(group, tmp_path):
    data = bytearray(as_documented(LLAMA, llama_parameters(), 2))
    data[37:41] = struct.pack("<i", group)
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(UserError, match="do not divide its rows"):
        llama2c.read_model(tmp_path / "m.bin")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        llama2c.read_model(tmp_path / "m.bin")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_damage_is_refused_or_is_a_model(version, tmp_path, small_memory):
    good = as_documented(LLAMA, llama_parameters(), version)
    path = tmp_path / "m.bin"
    path.write_bytes(good)
    small_memory(path)

    @settings(max_examples=150)
    @given(damaged(good, 44))
    def check(data):
        read_or_refuse(llama2c.read_model, path, data)

    check()


@given(
    values=st.lists(st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(1, 200)), min_size=7, max_size=7),
    start=st.sampled_from([b"", struct.pack("<Ii", 0x616B3432, 1), struct.pack("<Ii", 0x616B3432, 2)]),
    tail=st.binary(max_size=300),
)
def test_any_header_is_refused_before_memory_is_taken(values, start, tail, tmp_path):
    data = start + struct.pack("<7i", *values) + tail
    assert read_or_refuse(llama2c.read_model, tmp_path / "x", data) is None
