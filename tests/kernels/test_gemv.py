"""Products of weights as they are stored with a few vectors, in the form that each type meets."""

import ml_dtypes
import numpy as np
import pytest

from llmpy.kernels.cpu.decode import gemv
from llmpy.kernels.cpu.decode.gemv import BYTES, HALVES, form_of, products_entry, weighted_sum_entry
from llmpy.quant.types import BF16, BLOCK_TYPES, F32
from tests.kernels.test_dequantize import KINDS, name, stored


@pytest.fixture(scope="module", autouse=True)
def compiled():
    for entry in (products_entry, weighted_sum_entry):
        entry.compile("float32")


def address(array):
    return array.ctypes.data


def in_form(x, kind):
    """x [S, n] as weights of this kind meet it, [S, bytes], and the numbers that it then is."""
    form = form_of(kind.name)
    if form == HALVES:
        halves = x.astype(ml_dtypes.bfloat16)
        return halves.view(np.uint8), halves.astype(np.float64)
    if form != BYTES:
        return x.view(np.uint8), x.astype(np.float64)
    S, n = x.shape
    padded = -(-n // 64) * 64
    groups = x.reshape(S, -1, 32)
    scales = np.abs(groups).max(-1) / np.float32(127)
    q = np.rint(groups / scales[..., None]).astype(np.int8)
    made = np.zeros((S, 3 * padded), np.uint8)
    minus_sums = -q.reshape(S, -1, 4).sum(-1, dtype=np.int32)
    for part, values in enumerate((q.reshape(S, n), minus_sums, np.repeat(scales, 8, axis=1))):
        made[:, part * padded : part * padded + n] = np.ascontiguousarray(values).view(np.uint8)
    return made, (q * scales[..., None].astype(np.float64)).reshape(S, n)


@pytest.mark.parametrize("kind", KINDS, ids=name)
@pytest.mark.parametrize(("rows", "vectors"), [(1, 1), (3, 2), (8, 1), (13, 3), (12, 4), (23, 9)])
@pytest.mark.parametrize("blocks", [1, 2, 3, 9])
@pytest.mark.parametrize("add", [False, True])
def test_products_agree_with_float64(kind, rows, vectors, blocks, add):
    n = blocks * kind.numbers if kind.numbers > 1 else blocks * 11 + (blocks == 9)
    w = stored(kind, rows, n)
    x = np.random.default_rng(1).standard_normal((vectors, n)).astype(np.float32)
    forms, exact = in_form(x, kind)
    y = np.full((vectors, rows + 5), np.nan, np.float32)
    y[:, 2 : 2 + rows] = 3.0
    products_entry.call(
        kind.code,
        w.address,
        w.row_bytes,
        rows,
        address(forms),
        forms.shape[1],
        vectors,
        n,
        address(y) + 8,
        y.strides[0],
        add,
    )
    numbers = w.dequantize().astype(np.float64)
    expected = exact @ numbers.T + 3.0 * add
    tolerance = 1e-6 * (np.abs(exact) @ np.abs(numbers).T + 3.0)
    assert (np.abs(y[:, 2 : 2 + rows] - expected) < tolerance).all()
    assert np.isnan(y[:, :2]).all()
    assert np.isnan(y[:, 2 + rows :]).all()


@pytest.mark.parametrize("kind", [F32, BF16], ids=name)
@pytest.mark.parametrize(
    ("count", "depth", "between"), [(1, 1, 0), (7, 8, 5), (50, 64, 64), (33, 80, 1), (128, 131, 9)]
)
def test_a_weighted_sum_agrees_with_float64(kind, count, depth, between):
    random = np.random.default_rng(2)
    dtype = np.float32 if kind == F32 else ml_dtypes.bfloat16
    values = random.standard_normal((count, depth + between)).astype(dtype)
    weights = random.standard_normal(count).astype(np.float32)
    y = np.full(depth + 2, np.nan, np.float32)
    weighted_sum_entry.call(
        kind.code, address(values), values.strides[0], address(weights), count, address(y) + 4, depth
    )
    expected = weights.astype(np.float64) @ values[:, :depth].astype(np.float64)
    np.testing.assert_allclose(y[1:-1], expected, atol=1e-5 * np.sqrt(count))
    assert np.isnan(y[[0, -1]]).all()


def test_every_type_that_is_read_has_its_products():
    assert {code: kind.name for code, kind in BLOCK_TYPES.items()} == gemv.KINDS
