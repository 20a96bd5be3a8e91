from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy.kernels.cuda.gemm import triton_gemm as module
from llmpy.kernels.cuda.gemm.problem import COLUMN_SUMS, NN, NT, TN, Product, describe
from llmpy.kernels.cuda.gemm.tile_sizes import (
    FLOAT32,
    LARGE,
    MEDIUM,
    ROUGH,
    SMALL,
    Tiles,
    candidates,
    guess,
    may_split,
    table,
)
from llmpy.kernels.cuda.gemm.triton_gemm import add_up, gemm
from llmpy.kernels.cuda.primitives.reduce import add_column_sums
from tests.kernels.cuda.products import FORMS, LAYOUTS, Case, seen
from tests.kernels.numerics import BFLOAT16, NARROW, Arrays, assert_agree

WHOLE = Tiles(64, 64, 256, 4, 3)
MANY = Tiles(16, 32, 16, 4, 3)  # several along every axis, the last of each cut off
SHAPES = [(1, 1, 1), (37, 67, 131), (64, 32, 48), (5, 129, 16)]


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tiles", [WHOLE, MANY], ids=["one tile", "many tiles"])
def test_every_form_agrees_with_float64(arrays, form, dtype, tiles):
    for shape in SHAPES:
        case = Case(arrays, form, *shape, dtype)
        gemm(case.product, tiles, *case.arrays)
        case.check()


@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize("form", ["bias and residual", "bias and gelu", "dx through gelu", "dw and db added"])
def test_the_columns_of_a_tile_in_slices(arrays, monkeypatch, form, slices):
    """As a GPU does it, which has registers for only so much."""
    monkeypatch.setattr(module, "slices", lambda epilogue, accumulate: slices)
    case = Case(arrays, form, 37, 67, 50, BFLOAT16)
    gemm(case.product, MANY, *case.arrays)
    case.check()


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", ["forward", "dx", "dw", "dw added"])
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_programs_that_share_the_depth_of_a_tile(arrays, form, dtype, parts):
    """Also more of them than there is depth for."""
    for shape in [(37, 67, 131), (33, 32, 96), (3, 5, 40)]:
        case = Case(arrays, form, *shape, dtype)
        gemm(case.product, MANY._replace(parts=parts), *case.arrays)
        case.check()


def test_the_sums_of_parts_are_the_same_every_time(arrays):
    first, again = arrays.empty(70, 65), arrays.empty(70, 65)
    a, b = arrays.normal(300, 70, dtype=BFLOAT16), arrays.normal(300, 65, dtype=BFLOAT16)
    for c in (first, again):
        gemm(describe(seen(c), seen(a), seen(b), TN), MANY._replace(parts=4), seen(c), seen(a), seen(b))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("wide_a", "wide_b"), [(True, False), (False, True)])
def test_mixed_operands_are_multiplied_in_float32(arrays, layout, wide_a, wide_b):
    M, N, K = 35, 66, 131
    a = arrays.normal(*((K, M) if layout == TN else (M, K)), dtype=np.float32 if wide_a else BFLOAT16)
    b = arrays.normal(*((N, K) if layout == NT else (K, N)), dtype=np.float32 if wide_b else BFLOAT16)
    c = arrays.empty(M, N)
    product = describe(seen(c), seen(a), seen(b), layout)
    gemm(product, guess(product, (9, 0)), seen(c), seen(a), seen(b))
    A, B = a.astype(float), b.astype(float)
    assert_agree(c, (A.T if layout == TN else A) @ (B.T if layout == NT else B), floor=2e-6)


@pytest.mark.parametrize("tiles", [WHOLE, MANY], ids=["one tile", "many tiles"])
def test_rows_apart_in_memory_and_wider_than_the_product(arrays, tiles):
    """As the classifier has its logits: rows padded to where wide loads begin, and numbers half as wide in place."""
    x, w = arrays.normal(7, 40, dtype=BFLOAT16), arrays.normal(50, 40, dtype=BFLOAT16)
    logits = arrays.empty(7, 64)
    product = describe(seen(logits), seen(x), seen(w), NT)
    assert (product.M, product.N, product.K, product.c_stride) == (7, 50, 40, 64)
    gemm(product, tiles, seen(logits), seen(x), seen(w))
    expected = x.astype(float) @ w.astype(float).T
    assert_agree(logits[:, :50].copy(), expected)

    padded = np.zeros((7, 128), BFLOAT16)  # every other 64 of them are not there
    padded[:, :50], padded[:, 64:] = expected, np.nan
    gradients, dw, dx = seen(padded[:, :64]), arrays.normal(50, 40), arrays.empty(7, 40, dtype=BFLOAT16)
    before, used = dw.copy(), padded[:, :50].astype(float)
    gemm(describe(seen(dw), gradients, seen(x), TN, True), tiles, seen(dw), gradients, seen(x))
    assert_agree(dw, before + used.T @ x.astype(float), floor=1e-5)
    gemm(describe(seen(dx), gradients, seen(w), NN), tiles, seen(dx), gradients, seen(w))
    assert_agree(dx, used @ w.astype(float), NARROW)


def test_shapes_that_do_not_fit_are_refused(arrays):
    a, b, c = seen(arrays.normal(3, 4)), seen(arrays.normal(5, 4)), seen(arrays.empty(3, 5))
    describe(c, a, b, NT)
    for wrong in [(c, a, b, NN), (c, a, b, TN), (c, a[:2], b, NT), (c, a[:, :3], b, NT), (c[:, :4], a, b, NT)]:
        with pytest.raises(ValueError, match="no product"):
            describe(*wrong)
    with pytest.raises(ValueError, match="no product NT"):
        describe(c, a, b, NT, epilogue=COLUMN_SUMS, bias=seen(arrays.normal(3)))
    with pytest.raises(ValueError, match="no product"):
        describe(c, a.swapaxes(0, 1), b, TN)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 131), (2500, 7), (1025, 1030)])
def test_sums_of_columns(arrays, rows, columns, dtype):
    x, y = arrays.normal(rows, columns, dtype=dtype), arrays.normal(columns)
    expected = y + x.astype(float).sum(0)
    add_column_sums(seen(y), seen(x))
    assert_agree(y, expected, floor=1e-5)


def test_adding_up(arrays):
    parts, c, d = arrays.normal(3, 5, 7), arrays.normal(5, 7), arrays.empty(35, dtype=BFLOAT16)
    expected = c + parts.astype(float).sum(0)
    add_up(seen(c), seen(parts), 3, accumulate=True)
    assert_agree(c, expected)
    add_up(seen(d), seen(parts))
    np.testing.assert_array_equal(d, parts[0].ravel().astype(BFLOAT16))


# ---- which tiles -----------------------------------------------------------------------------------------------------


def product_of(form, M, N, K, dtype=BFLOAT16):
    """Described without memory: the shapes of a real model."""
    layout, epilogue, biased, accumulate, _wide = FORMS[form]
    small = Case(Arrays(), form, 1, 1, 1, dtype).product
    a_stride, b_stride = (M, N) if layout == TN else (K, K if layout == NT else N)
    a_stride += -a_stride % 64  # as padded logits are
    return Product(
        layout, M, N, K, small.a_type, small.b_type, small.c_type, a_stride, b_stride, N, 256, accumulate, epilogue,
        biased, small.extra_type, N if small.extra_type else 0,
    )  # fmt: skip


def test_few_tiles_share_the_depth_on_a_large_card():
    """dw of GPT-2 124M: 18 tiles for 132 multiprocessors, 65536 deep."""
    best = candidates(product_of("dw added", 768, 768, 65536), (9, 0))
    assert best[0].parts > 4
    assert candidates(product_of("dw added", 50257, 768, 4096), (9, 0))[0].parts == 1


def test_the_depth_is_shared_by_what_a_plain_sum_ends_alone():
    assert may_split(product_of("dw", 768, 768, 4096))
    assert not may_split(product_of("bias and gelu", 768, 768, 4096))
    assert all(tiles.parts == 1 for tiles in candidates(product_of("bias and gelu", 64, 64, 65536), (9, 0)))


def test_a_large_product_takes_the_fastest_tiles():
    large = product_of("bias", 65536, 3072, 768)
    assert candidates(large, (9, 0))[0] == LARGE[0][0]
    assert candidates(large, (8, 0))[0] == MEDIUM[0][0]
    assert candidates(large, (8, 9))[0] == SMALL[0][0]
    assert candidates(product_of("bias", 65536, 3072, 768, np.float32), (9, 0))[0] == FLOAT32[0][0]


def test_a_small_product_takes_small_tiles():
    best = candidates(product_of("bias", 128, 768, 768), (9, 0))[0]
    assert best.block_m * best.block_n < 128 * 128


def test_rows_that_begin_anywhere_take_tiles_of_their_own():
    padded = product_of("dx", 4096, 768, 50257)
    assert candidates(padded, (9, 0))[0].block_k == LARGE[0][0].block_k
    assert candidates(replace(padded, a_stride=50257), (9, 0))[0].block_k == ROUGH[0][0].block_k


@pytest.mark.parametrize(("capability", "limit"), [((8, 0), 166_912), ((8, 9), 101_376), ((9, 0), 232_448)])
def test_tiles_on_their_way_fit_the_shared_memory(capability, limit):
    for narrow in (True, False):
        for tiles, speed in table(capability, narrow):
            bytes_of = 2 if narrow else 4
            assert (tiles.block_m + tiles.block_n) * tiles.block_k * bytes_of * tiles.stages <= limit
            assert 0 < speed <= 1


def test_keys_tell_products_apart():
    keys = {product_of(form, M, 64, 64).key for form in FORMS for M in (1, 3)}
    added = sum("added" in form for form in FORMS)  # which goes the way of what is written
    assert len(keys) == 2 * (len(FORMS) - added)
    assert all(key.isascii() and "  " not in key for key in keys)
