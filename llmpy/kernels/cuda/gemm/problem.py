"""Description of a matmul without its arrays: layout, shape, dtypes, strides and epilogue. The autotuner's key.

    NT: c [M, N] = a [M, K] @ b [N, K]^T        y = x w^T
    NN: c [M, N] = a [M, K] @ b [K, N]          dx = dy w
    TN: c [M, N] = a [K, M]^T @ b [K, N]        dw = dy^T x

and the epilogue, computed while the sums are in registers:

    BIAS           + bias [N], float32
    BIAS_RESIDUAL  + bias + extra [M, N]
    BIAS_GELU      extra = the sums + bias, c their GELU
    GELU_GRADIENT  c = the sums * GELU'(extra), and extra becomes its GELU
    COLUMN_SUMS    bias [M] += a's columns, summed: the gradient of a bias, with TN alone

`bias` may be None except for COLUMN_SUMS.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace

from llmpy.kernels.cuda.runtime.array import DeviceArray

NT, NN, TN = 0, 1, 2
NOTHING, BIAS, BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT, COLUMN_SUMS = 0, 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Product:
    """`a_stride` ... are elements from row to row; `alignment` in bytes divides every address, up to 256.

    `in_place`: the residual and the result are the same array.
    """

    layout: int
    M: int
    N: int
    K: int
    a_type: str
    b_type: str
    c_type: str
    a_stride: int
    b_stride: int
    c_stride: int
    alignment: int
    accumulate: bool = False
    epilogue: int = NOTHING
    biased: bool = False
    extra_type: str = ""
    extra_stride: int = 0
    in_place: bool = False

    @property
    def key(self) -> str:
        """The key in the autotuner's file; the same for accumulating and overwriting."""
        parts = (int(part) if isinstance(part, bool) else part for part in astuple(replace(self, accumulate=False)))
        return " ".join(str(part) if part != "" else "-" for part in parts)

    @property
    def is_bfloat16(self) -> bool:
        """Returns whether both operands are bfloat16, for the tensor cores."""
        return self.a_type == self.b_type == "bfloat16"

    @property
    def is_rough(self) -> bool:
        """Returns whether rows of an operand are unaligned, so that the widest loads cannot read them."""
        return self.a_stride % 16 != 0 or self.b_stride % 16 != 0 or self.alignment < 16


def describe(
    c: DeviceArray,
    a: DeviceArray,
    b: DeviceArray,
    layout: int,
    accumulate: bool = False,
    epilogue: int = NOTHING,
    bias: DeviceArray | None = None,
    extra: DeviceArray | None = None,
) -> Product:
    """Describes the matmul of these arrays, whose rows are contiguous. Raises ValueError if the shapes do not fit.

    c may have more columns than the result; their contents are undefined afterwards. a may have more columns than the
    matmul reads; they are zeros if they lie along the depth.
    """
    rows, depth = a.shape[::-1] if layout == TN else a.shape
    columns, b_depth = b.shape if layout == NT else b.shape[::-1]
    M, N, K = c.shape[0], columns, b_depth
    arrays = [c, a, b, *([extra] if extra is not None else [])]
    fits = (
        c.shape[1] >= N and (rows >= M if layout == TN else rows == M) and (depth >= K if layout != TN else depth == K)
    )
    if epilogue == COLUMN_SUMS:
        fits &= layout == TN and bias is not None and bias.shape == (rows,)
    elif bias is not None:
        fits &= bias.shape == (N,)
    if extra is not None:
        fits &= extra.shape == (M, N) and c.shape == (M, N)
    if not fits or any(x.shape[1] > 1 and x.strides[1] != 1 for x in arrays):
        shapes = ", ".join(f"{x.shape} with strides {x.strides}" for x in arrays)
        raise ValueError(f"no product {('NT', 'NN', 'TN')[layout]} of these: {shapes}")
    return Product(
        layout, M, N, K, str(a.dtype), str(b.dtype), str(c.dtype), row_stride(a), row_stride(b), row_stride(c),
        min(_alignment(x) for x in arrays), accumulate, epilogue, bias is not None,
        "" if extra is None else str(extra.dtype), 0 if extra is None else row_stride(extra),
        extra is not None and extra.address == c.address,
    )  # fmt: skip


def row_stride(x: DeviceArray) -> int:
    """Elements from one row of a matrix to the next; a single row has its length as stride."""
    return x.strides[0] if x.shape[0] > 1 else x.shape[1]


def _alignment(x: DeviceArray) -> int:
    return (x.address | 256) & -(x.address | 256)
