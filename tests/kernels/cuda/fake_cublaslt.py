"""cuBLASLt as its documentation describes it, in NumPy on this machine's memory: matrices by columns, leading
dimensions, epilogues. It refuses what the real one refuses, and notes down what it was asked for."""

import ctypes
from enum import IntEnum
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from llmpy.kernels.reference import gelu_backward, gelu_forward

TYPES = {0: np.dtype(np.float32), 14: np.dtype(ml_dtypes.bfloat16)}


class Epilogue(IntEnum):
    DEFAULT = 1
    BIAS = 4
    GELU_AUX = 160
    GELU_AUX_BIAS = 164
    DGELU = 192
    BGRADB = 512


class MatmulDescAttribute(IntEnum):
    TRANSA = 3
    TRANSB = 4
    EPILOGUE = 7
    BIAS_POINTER = 8
    EPILOGUE_AUX_POINTER = 11
    EPILOGUE_AUX_LD = 12
    BIAS_DATA_TYPE = 26


class MatmulPreferenceAttribute(IntEnum):
    MAX_WORKSPACE_BYTES = 1
    MIN_ALIGNMENT_A_BYTES = 5
    MIN_ALIGNMENT_B_BYTES = 6
    MIN_ALIGNMENT_C_BYTES = 7
    MIN_ALIGNMENT_D_BYTES = 8


DESCRIPTION_TYPES = {3: np.int32, 4: np.int32, 7: np.uint32, 8: np.int64, 11: np.int64, 12: np.int64, 26: np.int32}


class FakeCublasLt:
    """`algorithms` are found for every product whose leading dimensions are multiples of 16 bytes, or for all."""

    Epilogue, MatmulDescAttribute, MatmulPreferenceAttribute = Epilogue, MatmulDescAttribute, MatmulPreferenceAttribute
    matmul_heuristic_result_dtype = np.dtype(
        [
            ("algo", [("data_", "<u8", (8,))]),
            ("workspace_size", "<u8"),
            ("state", "<i4"),
            ("waves_count", "<f4"),
            ("reserved", "<i4", (4,)),
        ]
    )

    class cuBLASLtError(Exception):  # noqa: N801
        """As nvmath names it."""

    def __init__(self, algorithms=3, aligned_only=False):
        self.count, self.aligned_only = algorithms, aligned_only
        self.made, self.calls = {}, []

    def get_version(self):
        return 130200

    def create(self):
        return 77

    def _keep(self, value):
        self.made[len(self.made) + 1] = value
        return len(self.made)

    def matmul_desc_create(self, compute, scale):
        assert (compute, scale) == (68, 0), "sums are float32"
        return self._keep({})

    def matrix_layout_create(self, kind, rows, columns, ld):
        assert ld >= rows, "the leading dimension is the distance between columns"
        return self._keep(SimpleNamespace(dtype=TYPES[kind], shape=(rows, columns), ld=ld))

    def matmul_preference_create(self):
        return self._keep({})

    def matmul_preference_destroy(self, preference):
        self.made[preference] = None

    def get_matmul_desc_attribute_dtype(self, attribute):
        return DESCRIPTION_TYPES[attribute]

    def get_matmul_preference_attribute_dtype(self, attribute):
        return np.uint64 if attribute == 1 else np.uint32

    def matmul_desc_set_attribute(self, description, attribute, address, size):
        dtype = np.dtype(DESCRIPTION_TYPES[attribute])
        assert size == dtype.itemsize
        self.made[description][attribute] = int(np.frombuffer(ctypes.string_at(address, size), dtype)[0])

    def matmul_preference_set_attribute(self, preference, attribute, address, size):
        dtype = np.dtype(self.get_matmul_preference_attribute_dtype(attribute))
        assert size == dtype.itemsize
        self.made[preference][attribute] = int(np.frombuffer(ctypes.string_at(address, size), dtype)[0])

    def matmul_algo_get_heuristic(self, handle, description, a, b, c, d, preference, count, results, found):
        assert handle == 77
        layouts = [self.made[x] for x in (a, b, c, d)]
        if self.aligned_only and any(x.ld * x.dtype.itemsize % 16 for x in layouts):
            raise self.cuBLASLtError("CUBLAS_STATUS_NOT_SUPPORTED")
        made = np.zeros(count, self.matmul_heuristic_result_dtype)
        made["algo"]["data_"][:, 0] = np.arange(count) + 1000
        ctypes.memmove(results, made.ctypes.data, made.nbytes)
        ctypes.memmove(found, np.array([min(count, self.count)], np.int32).ctypes.data, 4)
        self.preference = dict(self.made[preference])

    def matmul(
        self, handle, description, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout, algorithm,
        workspace, workspace_size, stream,
    ):  # fmt: skip
        attributes = dict(self.made[description])
        a_layout, b_layout, c_layout, d_layout = (self.made[x] for x in (a_layout, b_layout, c_layout, d_layout))
        A, B = _matrix(a, a_layout), _matrix(b, b_layout)
        A, B = (A.T if attributes[3] else A).astype(float), (B.T if attributes[4] else B).astype(float)
        D, C = _matrix(d, d_layout), _matrix(c, c_layout)
        assert A.shape[1] == B.shape[0]
        assert D.shape == C.shape == (A.shape[0], B.shape[1])
        assert c_layout.dtype == d_layout.dtype
        assert c != d or c_layout.ld == d_layout.ld
        alpha, beta = (float(np.frombuffer(ctypes.string_at(x, 4), np.float32)[0]) for x in (alpha, beta))
        result = alpha * (A @ B)
        if beta:  # what is not asked for may be NaN
            result += beta * C.astype(float)
        epilogue = Epilogue(attributes[7])
        if epilogue in (Epilogue.BIAS, Epilogue.GELU_AUX_BIAS):
            result += _vector(attributes, D, len(D)).astype(float)[:, None]
        if epilogue in (Epilogue.GELU_AUX, Epilogue.GELU_AUX_BIAS):
            _auxiliary(attributes, d_layout)[:] = result
            gelu_forward(y := np.empty_like(result), result)
            result = y
        if epilogue == Epilogue.DGELU:
            gelu_backward(dx := np.empty_like(result), result, _auxiliary(attributes, d_layout).astype(float))
            result = dx
        if epilogue == Epilogue.BGRADB:
            _vector(attributes, D, D.shape[1])[:] = B.sum(0)
        D[:] = result
        number = int(np.frombuffer(ctypes.string_at(algorithm, 64), np.uint64)[0])
        self.calls.append(
            SimpleNamespace(
                epilogue=epilogue, turned=(attributes[3], attributes[4]), algorithm=number, beta=beta,
                layouts=[(x.dtype, x.shape, x.ld) for x in (a_layout, b_layout, c_layout, d_layout)],
                addresses=(a, b, c, d), workspace=(workspace, workspace_size), stream=stream, attributes=attributes,
            )
        )  # fmt: skip


def _array(address, size, dtype):
    return np.frombuffer((ctypes.c_uint8 * (size * dtype.itemsize)).from_address(address), dtype)


def _matrix(address, layout):
    """[rows, columns], a view of memory"""
    rows, columns = layout.shape
    flat = _array(address, (columns - 1) * layout.ld + rows, layout.dtype)
    return np.lib.stride_tricks.as_strided(
        flat, (rows, columns), (layout.dtype.itemsize, layout.ld * layout.dtype.itemsize)
    )


def _vector(attributes, D, size):
    assert TYPES[attributes[26]] == D.dtype, "a bias of another type than the result is not supported"
    return _array(attributes[8], size, D.dtype)


def _auxiliary(attributes, d_layout):
    return _matrix(attributes[11], SimpleNamespace(dtype=d_layout.dtype, shape=d_layout.shape, ld=attributes[12]))
