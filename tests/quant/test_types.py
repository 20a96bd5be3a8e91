"""The types of numbers that weights are stored in, both ways, beside the official library."""

import numpy as np
import pytest

from llmpy.quant.types import BF16, BLOCK_TYPES, F16, F32, OTHER_TYPES, Q8_0, dequantize, dequantize_into, quantize_into

KINDS = list(BLOCK_TYPES.values())


def quantized(kind, numbers):
    numbers = np.asarray(numbers, np.float32)
    out = np.empty((len(numbers), kind.row_bytes(numbers.shape[1])), np.uint8)
    quantize_into(out, kind, numbers)
    return out


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_codes_and_sizes_are_those_of_the_library(kind):
    gguf = pytest.importorskip("gguf")
    theirs = gguf.GGMLQuantizationType[kind.name]
    assert theirs == kind.code
    assert gguf.GGML_QUANT_SIZES[theirs] == (kind.numbers, kind.bytes)
    assert all(gguf.GGMLQuantizationType[name] == code for code, name in OTHER_TYPES.items() if name != "MXFP4")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_any_bits_become_the_numbers_that_the_library_reads(kind):
    gguf = pytest.importorskip("gguf")
    data = np.random.default_rng(1).integers(0, 256, (7, kind.row_bytes(512)), np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.name])
    np.testing.assert_array_equal(dequantize(kind, data), expected)
    out = np.empty((7, 512), np.float32)
    dequantize_into(out, kind, data)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(dequantize(kind, data[[2, 2]]), expected[[2, 2]])


@pytest.mark.parametrize("kind", [F32, F16, BF16], ids=lambda kind: kind.name)
def test_plain_types_hold_the_nearest_number(kind):
    numbers = np.random.default_rng(2).standard_normal((5, 77)).astype(np.float32)
    back = dequantize(kind, quantized(kind, numbers))
    np.testing.assert_allclose(back, numbers, rtol={"F32": 0, "F16": 2**-11, "BF16": 2**-8}[kind.name])
    np.testing.assert_array_equal(dequantize(kind, quantized(kind, back)), back)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_eight_bits_are_within_half_a_step_and_as_close_as_the_library_comes(scale):
    gguf = pytest.importorskip("gguf")
    numbers = np.random.default_rng(3).standard_normal((9, 320)).astype(np.float32) * np.float32(scale)
    data = quantized(Q8_0, numbers)
    back = dequantize(Q8_0, data)
    steps = np.repeat(np.abs(numbers.reshape(-1, 32)).max(-1) / 127, 32).reshape(numbers.shape)
    assert (np.abs(back - numbers) <= 0.51 * steps + np.abs(numbers) * 2**-10 + 1e-7).all()
    theirs = gguf.quants.dequantize(gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0), 8)
    assert np.abs(back - numbers).mean() <= 1.001 * np.abs(theirs - numbers).mean()
    np.testing.assert_array_equal(quantized(Q8_0, back), data)  # what is so already stays so


def test_ties_go_to_the_even_number():
    numbers = np.zeros((1, 32), np.float32)
    numbers[0, :5] = [127, 0.5, 1.5, 2.5, -3.5]
    assert quantized(Q8_0, numbers)[0, 2:7].view(np.int8).tolist() == [127, 0, 2, 2, -4]


def test_eight_bits_at_the_ends_of_what_float16_can_scale():
    numbers = np.zeros((6, 32), np.float32)
    numbers[1] = 1e-30  # rounds to nothing
    numbers[2] = np.linspace(-7e-6, 7e-6, 32)  # float16 has a few steps left for its scale
    numbers[3] = 1e30  # the largest there is
    numbers[4, 3], numbers[5, 4] = np.inf, np.nan
    back = dequantize(Q8_0, quantized(Q8_0, numbers))
    assert not back[:2].any()
    np.testing.assert_allclose(back[2], numbers[2], atol=1e-6)
    np.testing.assert_allclose(back[3], 127 * 65504)
    assert np.isnan(back[4:]).all()
