"""Products with weights as they are stored: every type, exact on the way to float32, in every precision of x."""

import numpy as np
import pytest

from llmpy.blocks import BLOCK_TYPES
from llmpy.kernels import cpu
from llmpy.matrix import Matrix
from tests.kernels.numerics import BFLOAT16, NARROW, Arrays, compare, rms

KINDS = list(BLOCK_TYPES.values())
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}  # where a block's float16 are
# N, C, OC. C counts blocks of the type, so that it is never round where it need not be.
SHAPES = [(1, 1, 1), (2, 3, 5), (5, 1, 17), (9, 2, 49), (17, 5, 97), (33, 7, 31), (70, 3, 64)]


def stored(kind, OC, C, seed=0):
    """A weight [OC, C] of any bits, with scales that keep its numbers about 1; it begins where only it must."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (OC * C // kind.numbers, kind.bytes), np.uint8)
    if kind.numbers == 1:
        blocks = kind.from_float32(random.standard_normal((OC * C, 1)).astype(np.float32))
    for at in HALVES.get(kind.name, []):
        scales = random.uniform(0.001, 0.02, (len(blocks), 1)) * random.choice([-1, 1], (len(blocks), 1))
        blocks[:, at : at + 2] = scales.astype(np.float16).view(np.uint8)
    space = np.empty(blocks.size + 64, np.uint8)
    offset = -space.ctypes.data % 64 + (4 if kind.name == "F32" else 2)
    data = space[offset : offset + blocks.size].reshape(OC, kind.row_bytes(C))
    data[...] = blocks.reshape(data.shape)
    data.flags.writeable = False  # as in a file
    return Matrix(kind, (OC, C), data)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize(("N", "blocks", "OC"), SHAPES)
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_products_agree_with_the_reference(kind, N, blocks, OC, activations):
    arrays = Arrays(N, activations=activations)
    w = stored(kind, OC, blocks * kind.numbers + (kind.numbers == 1) * 60)
    x = arrays.acts(N, w.shape[1], scale=w.shape[1] ** -0.5 / rms(w.dequantize()))
    for form in ("plain", "residual", "pre_gelu"):
        extra = {} if form == "plain" else {form: arrays.acts(N, OC)}
        b = None if form == "plain" else arrays.normal(OC)
        # In bfloat16 the weights are rounded too.
        compare(cpu, "linear_forward", arrays.empty_acts(N, OC), x, w, b, narrow=3 * NARROW, **extra)
    arrays.check()
