"""GEMM through cuBLASLt, NVIDIA's library, with fused epilogues.

cuBLASLt stores matrices by columns: our rows, one after the other, are the columns of the transposed matrix. So we ask
for c^T = b^T a^T: the A of cuBLASLt is our b, its B is our a, and its rows of the result are our columns.

A `Plan` keeps the description of a matmul, so a call only sets a few addresses. The library is called through
nvmath-python, which the first matmul imports.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from llmpy.kernels.cuda.gelu import gelu_forward
from llmpy.kernels.cuda.gemm.problem import BIAS_GELU, BIAS_RESIDUAL, COLUMN_SUMS, GELU_GRADIENT, NT, TN, Product
from llmpy.kernels.cuda.gemm.triton_gemm import add_up
from llmpy.kernels.cuda.primitives.reduce import add_column_sums
from llmpy.kernels.cuda.runtime import device
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.kernels.cuda.runtime.workspace import scratch

WORKSPACE = 32 * 2**20  # bytes: what NVIDIA recommends for Hopper
TYPES = {"float32": 0, "bfloat16": 14}  # cudaDataType_t
IN_FLOAT32 = 68  # CUBLAS_COMPUTE_32F: sums in float32, of float32 operands the products too
ONE, ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


@cache
def library() -> Any:
    """nvmath's module of cuBLASLt. Raises whatever says that it, or the library, or the driver, is not there."""
    if device.INTERPRETED:
        raise RuntimeError("Triton's interpreter has no GPU")
    from nvmath.bindings import cublasLt

    cublasLt.get_version()
    return cublasLt


@cache
def _handle(lt: Any) -> int:
    device.current()
    return lt.create()


def supports(product: Product) -> bool:
    """Whether the library has such a product at all; whether it has an algorithm for it, `Plan.algorithms` says."""
    plain = product.a_type == product.b_type and {product.a_type, product.c_type} <= TYPES.keys()
    same = not product.extra_type or product.extra_type == product.c_type
    # C is either what is added to, or the residual; and GELU comes after whatever is added.
    alone = not (product.accumulate and product.epilogue in (BIAS_RESIDUAL, BIAS_GELU, GELU_GRADIENT))
    whole = product.epilogue != GELU_GRADIENT or (product.extra_stride == product.N and not product.biased)
    return plain and same and alone and whole


class Plan:
    """A product as the library knows it; `fused`: sums of columns are made by it, and not by a kernel of ours."""

    def __init__(self, product: Product, fused: bool = True) -> None:
        lt = self._lt = library()
        self._sums = product.epilogue == COLUMN_SUMS
        self._fused = fused and self._sums
        self._product, self._handle = product, _handle(lt)
        p, attributes = product, lt.MatmulDescAttribute
        self._description = lt.matmul_desc_create(IN_FLOAT32, TYPES["float32"])
        self._set(attributes.TRANSA, p.layout == NT)
        self._set(attributes.TRANSB, p.layout == TN)
        self._set(attributes.EPILOGUE, self._epilogue())
        if p.epilogue in (BIAS_GELU, GELU_GRADIENT):
            self._set(attributes.EPILOGUE_AUX_LD, p.extra_stride)
        if p.biased and (self._fused or not self._sums):
            self._set(attributes.BIAS_DATA_TYPE, TYPES[p.c_type])
        operand, result = TYPES[p.a_type], TYPES[p.c_type]
        a_shape = (p.M, p.K) if p.layout == TN else (p.K, p.M)
        b_shape = (p.K, p.N) if p.layout == NT else (p.N, p.K)
        self._a = lt.matrix_layout_create(operand, *a_shape, p.a_stride)
        self._b = lt.matrix_layout_create(operand, *b_shape, p.b_stride)
        self._d = lt.matrix_layout_create(result, p.N, p.M, p.c_stride)
        self._c = self._d
        if p.epilogue == BIAS_RESIDUAL:
            self._c = lt.matrix_layout_create(result, p.N, p.M, p.extra_stride)

    def algorithms(self, count: int = 8) -> list[bytes]:
        """The algorithms that cuBLASLt proposes for this matmul, the best guess first; empty if it supports none."""
        lt, names = self._lt, self._lt.MatmulPreferenceAttribute
        preference = lt.matmul_preference_create()
        wishes = {names.MAX_WORKSPACE_BYTES: WORKSPACE}
        for matrix in "ABCD":
            wishes[getattr(names, f"MIN_ALIGNMENT_{matrix}_BYTES")] = self._product.alignment
        for name, value in wishes.items():
            held = np.array([value], lt.get_matmul_preference_attribute_dtype(name))
            lt.matmul_preference_set_attribute(preference, name, held.ctypes.data, held.nbytes)
        found, results = np.zeros(1, np.int32), np.zeros(count, lt.matmul_heuristic_result_dtype)
        try:
            lt.matmul_algo_get_heuristic(
                self._handle, self._description, self._b, self._a, self._c, self._d, preference, count,
                results.ctypes.data, found.ctypes.data,
            )  # fmt: skip
        except lt.cuBLASLtError:  # CUBLAS_STATUS_NOT_SUPPORTED
            return []
        finally:
            lt.matmul_preference_destroy(preference)
        return [result["algo"].tobytes() for result in results[: found[0]] if result["state"] == 0]

    def run(
        self, algorithm: bytes, c: DeviceArray, a: DeviceArray, b: DeviceArray, bias: DeviceArray | None = None,
        extra: DeviceArray | None = None, accumulate: bool = False,
    ) -> None:  # fmt: skip
        """Multiplies these arrays by one of `algorithms`."""
        lt, p, sums = self._lt, self._product, None
        if self._fused:
            sums = scratch("cuBLASLt's sums", p.M, dtype=c.dtype)
            self._set(lt.MatmulDescAttribute.BIAS_POINTER, sums.address)
        elif self._sums:
            assert bias is not None
            add_column_sums(bias, a)
        elif bias is not None:  # cuBLASLt takes a bias only in the dtype of the result
            held = scratch("cuBLASLt's bias", p.N, dtype=c.dtype)
            add_up(held, bias)
            self._set(lt.MatmulDescAttribute.BIAS_POINTER, held.address)
        if p.epilogue in (BIAS_GELU, GELU_GRADIENT):
            assert extra is not None
            self._set(lt.MatmulDescAttribute.EPILOGUE_AUX_POINTER, extra.address)
        residual = extra if p.epilogue == BIAS_RESIDUAL else None
        added = c if residual is None else residual
        beta = ZERO if residual is None and not accumulate else ONE
        chosen = np.frombuffer(algorithm, np.uint8)
        lt.matmul(
            self._handle, self._description, ONE.ctypes.data, b.address, self._b, a.address, self._a,
            beta.ctypes.data, added.address, self._c, c.address, self._d,
            chosen.ctypes.data, scratch("cuBLASLt", WORKSPACE).address, WORKSPACE, device.current().stream,
        )  # fmt: skip
        if sums is not None:
            assert bias is not None
            add_up(bias, sums, accumulate=True)
        if p.epilogue == GELU_GRADIENT:
            assert extra is not None
            gelu_forward(extra, extra)

    def _epilogue(self) -> int:
        names, p = self._lt.Epilogue, self._product
        if p.epilogue == BIAS_GELU:
            return names.GELU_AUX_BIAS if p.biased else names.GELU_AUX
        if p.epilogue == GELU_GRADIENT:
            return names.DGELU
        if self._sums:
            return names.BGRADB if self._fused else names.DEFAULT
        return names.BIAS if p.biased else names.DEFAULT

    def _set(self, attribute: int, value: int) -> None:
        held = np.array([int(value)], self._lt.get_matmul_desc_attribute_dtype(attribute))
        self._lt.matmul_desc_set_attribute(self._description, attribute, held.ctypes.data, held.nbytes)
