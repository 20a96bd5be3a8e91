"""exp and what is made of it, as polynomials that LLVM turns into vector code (it has no vector exp of its own to
call)."""

import numpy as np
from numba import njit

from llmpy.kernels.cpu.jit.intrinsics import float_from_bits

LOG2_E = np.float32(1.44269504088896341)
LN2_HIGH = np.float32(0.693359375)  # 9 bits: its product with an exponent is exact
LN2_LOW = np.float32(-2.12194440e-4)
LOWEST, HIGHEST = np.float32(-87.33654), np.float32(88.3762626)  # beyond, exp leaves the normal float32 numbers
# exp(r) = 1 + r + r^2 P(r) on |r| <= ln(2) / 2: the coefficients of Cephes' expf (Moshier 1989).
P0, P1, P2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
P3, P4, P5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
ZERO, HALF, ONE = np.float32(0), np.float32(0.5), np.float32(1)
GELU_SCALE, GELU_CUBIC = np.float32(0.7978845608028654), np.float32(0.044715)


@njit(fastmath={"contract"}, error_model="numpy")
def exp(x):
    """e^x in float32, to 2 units in the last place; 0 where that is not a normal number, 2.4e38 at most; NaN stays
    NaN."""
    x = HIGHEST if x > HIGHEST else x
    tiny = x < LOWEST
    x = LOWEST if tiny else x
    n = np.floor(x * LOG2_E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    p = ((((P0 * r + P1) * r + P2) * r + P3) * r + P4) * r + P5
    y = (p * r * r + r + ONE) * float_from_bits((np.int32(n) + np.int32(127)) << np.int32(23))
    return ZERO if tiny else y


@njit(fastmath={"contract"}, error_model="numpy")
def gelu(x):
    """GELU, tanh form: x/2 (1 + tanh z) = x sigmoid(2 z) with z = sqrt(2/pi) (x + 0.044715 x^3)."""
    z = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    return x / (ONE + exp(np.float32(-2) * z))


@njit(fastmath={"contract"}, error_model="numpy")
def gelu_derivative(x):
    """d GELU / dx = s + x s (1 - s) 2 dz/dx with s = sigmoid(2 z)."""
    z = GELU_SCALE * (x + GELU_CUBIC * x * x * x)
    s = ONE / (ONE + exp(np.float32(-2) * z))
    return s + x * s * (ONE - s) * np.float32(2) * GELU_SCALE * (ONE + np.float32(3) * GELU_CUBIC * x * x)
