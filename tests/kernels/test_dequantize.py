"""Products with weights as they are stored: every type, exact on the way to float32, in every precision of x."""

import numba
import numpy as np
import pytest

from llmpy.kernels import cpu
from llmpy.quant.matrix import Matrix
from llmpy.quant.types import BF16, BLOCK_TYPES, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0
from tests.kernels.numerics import BFLOAT16, NARROW, Arrays, compare, rms

KINDS = list(BLOCK_TYPES.values())
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}  # where a block's float16 are
SHAPES = [(1, 1, 1), (2, 3, 5), (5, 1, 17), (9, 2, 49), (17, 5, 97), (33, 7, 31), (70, 3, 64)]  # N, blocks, OC


def name(value):
    return getattr(value, "name", None)


def stored(kind, OC, C, seed=0):
    """A weight [OC, C] of any bits with scales that are no round numbers; it begins where it just may."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (OC * C // kind.numbers, kind.bytes), np.uint8)
    if kind.numbers == 1:
        blocks = kind.from_float32(random.standard_normal((OC * C, 1)).astype(np.float32))
    for at in HALVES.get(kind.name, []):
        scales = random.uniform(0.001, 0.02, (len(blocks), 1)) * random.choice([-1, 1], (len(blocks), 1))
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    space = np.empty(blocks.size + 64, np.uint8)
    offset = -space.ctypes.data % 64 + (4 if kind == F32 else 2)
    data = space[offset : offset + blocks.size].reshape(OC, kind.row_bytes(C))
    data[...] = blocks.reshape(data.shape)
    data.flags.writeable = False  # as in a file
    return Matrix(kind, (OC, C), data)


def check(kind, N, C, OC, activations, **options):
    """Plain, and with what may follow a product; in bfloat16 the weights are rounded too."""
    arrays = Arrays(N, activations=activations)
    w = stored(kind, OC, C)
    x = arrays.acts(N, C, scale=C**-0.5 / rms(w.dequantize()))
    for form in ("plain", "residual", "pre_gelu"):
        extra = {} if form == "plain" else {form: arrays.acts(N, OC)}
        b = None if form == "plain" else arrays.normal(OC)
        compare(cpu, "linear_forward", arrays.empty_acts(N, OC), x, w, b, narrow=3 * NARROW, **options, **extra)
    arrays.check()


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize(("N", "blocks", "OC"), SHAPES)
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_products_agree_with_the_reference(kind, N, blocks, OC, activations):
    check(kind, N, blocks * kind.numbers + (kind.numbers == 1) * 60, OC, activations)


@pytest.mark.parametrize("kind", [F16, BF16, Q8_0, Q4_K], ids=name)
@pytest.mark.parametrize(("N", "C", "OC"), [(9, 1024, 50), (70, 1792, 49), (5, 4608, 97)])
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_depths_of_several_passes(kind, N, C, OC, activations):
    """A pass ends where a block does. The deepest are too deep for one visit in bfloat16."""
    check(kind, N, C, OC, activations)


@pytest.mark.parametrize("kind", [Q8_0, Q6_K], ids=name)
def test_products_of_bfloat16_may_end_in_float32(kind):
    arrays = Arrays(activations=BFLOAT16)
    w = stored(kind, 65, 768)
    compare(cpu, "linear_forward", arrays.empty(7, 65), arrays.acts(7, 768), w, tolerance=NARROW)
    arrays.check()


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_numbers_are_widened_exactly(kind):
    """A product with the unit matrix gives the weight."""
    w = stored(kind, 61, 512)
    if kind.name in HALVES:
        w = Matrix(kind, w.shape, w.data.copy())
        at = HALVES[kind.name][0]
        w.data[3, at : at + 2] = 5, 0  # the float16 that have no leading 1
    y = np.empty((512, 61), np.float32)
    cpu.linear_forward(y, np.eye(512, dtype=np.float32), w)
    np.testing.assert_array_equal(y.T, w.dequantize())


@pytest.mark.parametrize("kind", [F16, Q8_0, Q4_0, Q4_K, Q6_K], ids=name)
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E01])
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_what_is_not_finite_shows(kind, bits, activations):
    w = stored(kind, 50, 512)
    w = Matrix(kind, w.shape, w.data.copy())
    at = w.row_bytes - kind.bytes + HALVES.get(kind.name, [0])[0]
    w.data[7, at : at + 2] = bits & 255, bits >> 8
    y = np.zeros((9, 50), activations)
    cpu.linear_forward(y, np.ones((9, 512), activations), w)
    with np.errstate(invalid="ignore"):
        assert (np.isfinite(y.astype(np.float32)) == (np.arange(50) != 7)).all()


@pytest.mark.parametrize("N", [1, 4, 5, 130])
def test_float32_is_what_an_array_is(N, arrays):
    w, x = stored(F32, 67, 259), arrays.normal(N, 259)
    y, expected = arrays.empty(N, 67), arrays.empty(N, 67)
    cpu.linear_forward(y, x, w)
    cpu.linear_forward(expected, x, w.dequantize())
    assert y.tobytes() == expected.tobytes()


@pytest.mark.parametrize("kind", [Q8_0, Q4_K], ids=name)
@pytest.mark.parametrize(("N", "OC"), [(3, 300), (300, 70)])
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_the_same_bits_for_any_number_of_threads(kind, N, OC, activations):
    arrays, before = Arrays(activations=activations), numba.get_num_threads()
    w, x, results = stored(kind, OC, 1280), arrays.acts(N, 1280), set()
    for threads in (1, 2, before):
        cpu.set_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        y = arrays.empty_acts(N, OC)
        cpu.linear_forward(y, x, w)
        results.add(y.tobytes())
    cpu.set_threads(before)
    assert len(results) == 1
