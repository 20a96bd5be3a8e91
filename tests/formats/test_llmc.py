"""llm.c's model file: byte for byte, and nothing but whole files."""

import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.formats.llmc import model as llmc
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.presets import from_descriptor
from tests.formats.damage import damaged, read_or_refuse
from tests.model_files import CONFIG, make_model

DTYPES = {"float32": np.dtype("<f4"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def as_documented(model, dtype):
    """The file as formats.md of the project describes it, put together by hand."""
    c, p = model.config, model.parameters
    values = (
        20240326,
        {"float32": 3, "bfloat16": 5}[dtype],
        c.context,
        c.vocab_size,
        c.layers,
        c.heads,
        c.channels,
        128,
    )
    names = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"
    tensors = [p[name].astype(DTYPES[dtype]).tobytes() for name in names.split()]
    return struct.pack("<256i", *values, *[0] * 248) + b"".join(tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_is_byte_for_byte_as_documented(dtype, tmp_path, model):
    path = tmp_path / "model.bin"
    llmc.write_model(path, CONFIG, model.parameters, dtype)
    assert path.read_bytes() == as_documented(model, dtype)
    header = llmc.read_model_header(path)
    assert (header.config, header.dtype) == (CONFIG, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_file_comes_back_byte_for_byte(dtype, tmp_path, model):
    (tmp_path / "a.bin").write_bytes(as_documented(model, dtype))
    config, parameters = llmc.read_model(tmp_path / "a.bin")
    expected = model.parameters.flat.astype(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(parameters.flat, expected)
    llmc.write_model(tmp_path / "b.bin", config, parameters, dtype)
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()


@settings(max_examples=20)
@given(
    config=st.builds(GPT2Config, *[st.integers(1, n) for n in (300, 9, 3)], st.just(1), st.integers(1, 9)),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_any_shape_comes_back(config, dtype, tmp_path):
    model = make_model(config, batch_size=1)
    llmc.write_model(tmp_path / "m.bin", config, model.parameters, dtype)
    found, parameters = llmc.read_model(tmp_path / "m.bin")
    assert found == config
    np.testing.assert_array_equal(parameters.flat, model.parameters.flat.astype(DTYPES[dtype]).astype(np.float32))


def test_files_of_known_models_have_the_sizes_known():
    """Numbers with padding, as llm.c prints them."""
    for descriptor, parameters in (
        ("d12", 124_475_904),
        ("d24", 354_871_296),
        ("d36", 774_090_240),
        ("d48", 1_557_686_400),
    ):
        assert llmc.total_size(llmc.gpt2_table(from_descriptor(descriptor))) == parameters
    assert llmc.total_size(llmc.gpt2_table(from_descriptor("gpt3:c768"))) == 125_262_336


def test_bfloat16_is_what_pytorch_rounds_to(tmp_path):
    torch = pytest.importorskip("torch")
    from tests.formats import torch_gpt2

    sizes = torch_gpt2.Sizes(CONFIG.vocab_size, CONFIG.context, CONFIG.layers, CONFIG.heads, CONFIG.channels)
    tensors = torch_gpt2.random_parameters(sizes)
    torch_gpt2.write_model(tmp_path / "float32.bin", tensors, sizes, torch.float32)
    torch_gpt2.write_model(tmp_path / "bfloat16.bin", tensors, sizes, torch.bfloat16)
    config, parameters = llmc.read_model(tmp_path / "float32.bin")
    for dtype in DTYPES:
        llmc.write_model(tmp_path / "ours.bin", config, parameters, dtype)
        assert (tmp_path / "ours.bin").read_bytes() == (tmp_path / f"{dtype}.bin").read_bytes()


def test_weights_that_are_no_numbers_are_kept(tmp_path):
    model = make_model()
    model.parameters.qkvw[0, 0, :3] = np.nan, np.inf, -np.inf
    for dtype in DTYPES:
        llmc.write_model(tmp_path / "m.bin", CONFIG, model.parameters, dtype)
        _, parameters = llmc.read_model(tmp_path / "m.bin")
        np.testing.assert_array_equal(parameters.qkvw[0, 0, :3], [np.nan, np.inf, -np.inf])


def test_another_shape_than_wanted_is_refused(tmp_path, model):
    llmc.write_model(tmp_path / "m.bin", CONFIG, model.parameters)
    other = GPT2Config(61, 9, 2, 2, 12)
    with pytest.raises(UserError, match=r"m\.bin holds"):
        llmc.read_parameters(tmp_path / "m.bin", other, model.parameters)


@pytest.mark.parametrize(
    ("index", "value", "why"),
    [
        (0, 20240327, "is not a GPT-2 model"),
        (1, 1, "version 1"),
        (2, 0, "damaged header"),
        (2, 10, "cut off"),
        (3, 60, "too long|cut off|damaged|asks"),
        (3, 129, "padded to 128"),
        (4, -2, "damaged header"),
        (4, 2**31 - 1, "cut off"),
        (5, 5, "damaged header"),
        (6, 2**31 - 1, "cut off|damaged"),
        (7, 256, "padded to 256"),
    ],
)
def test_a_flipped_header_is_refused(index, value, why, tmp_path, model):
    data = bytearray(as_documented(model, "float32"))
    data[4 * index : 4 * index + 4] = struct.pack("<i", value)
    (tmp_path / "m.bin").write_bytes(data)
    if (index, value) == (3, 60):  # another vocabulary of the same padded size cannot be told apart
        assert llmc.read_model(tmp_path / "m.bin")[0].vocab_size == 60
        return
    with pytest.raises(UserError, match=why):
        llmc.read_model(tmp_path / "m.bin")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        llmc.read_model(tmp_path / "m.bin")


GOOD = as_documented(make_model(), "bfloat16")


def test_damage_is_refused_or_is_a_model(tmp_path, small_memory):
    path = tmp_path / "m.bin"
    path.write_bytes(GOOD)
    small_memory(path)

    @settings(max_examples=200)
    @given(damaged(GOOD, 40))
    def check(data):
        loaded = read_or_refuse(llmc.read_model, path, data)
        assert loaded is None or loaded[0].channels == CONFIG.channels

    check()


sizes = st.integers(-(2**31), 2**31 - 1)


@given(
    values=st.lists(st.one_of(sizes, st.integers(1, 200)), min_size=6, max_size=6),
    version=st.sampled_from([3, 5]),
    tail=st.binary(max_size=99),
)
def test_any_header_is_refused_before_memory_is_taken(values, version, tail, tmp_path):
    header = struct.pack("<256i", 20240326, version, *values, *[0] * 248)
    assert read_or_refuse(llmc.read_model, tmp_path / "m.bin", header + tail) is None
