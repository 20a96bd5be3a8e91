import numpy as np
import pytest

pytest.importorskip("triton")

from llmpy.kernels.cuda.gemm import cublaslt
from llmpy.kernels.cuda.gemm.cublaslt import WORKSPACE, Plan, supports
from llmpy.kernels.cuda.gemm.problem import NN, NT, TN, describe
from llmpy.kernels.cuda.runtime import device
from tests.kernels.cuda import fake_cublaslt
from tests.kernels.cuda.fake_cublaslt import Epilogue, FakeCublasLt
from tests.kernels.cuda.products import FORMS, Case, seen
from tests.kernels.numerics import BFLOAT16

SHAPES = [(1, 1, 1), (37, 67, 131), (64, 32, 48)]


class Streaming:
    """The interpreter's device, with a stream to look for."""

    stream = 4711

    def __getattr__(self, name):
        return getattr(INTERPRETED, name)


INTERPRETED = device.current()


@pytest.fixture
def library(monkeypatch):
    fake = FakeCublasLt()
    monkeypatch.setattr(cublaslt, "library", lambda: fake)
    monkeypatch.setattr(device, "current", Streaming)
    return fake


def run(case, fused=True):
    plan = Plan(case.product, fused)
    accumulate = case.options[1]
    plan.run(plan.algorithms()[1], *case.arrays, accumulate=accumulate)


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_agrees_with_float64(library, arrays, form, dtype):
    for shape in SHAPES:
        case = Case(arrays, form, *shape, dtype)
        assert supports(case.product)
        run(case)
        case.check()


@pytest.mark.parametrize("form", ["dw and db", "dw and db added"])
def test_sums_of_columns_by_a_kernel_of_ours(library, arrays, form):
    case = Case(arrays, form, 37, 67, 131, BFLOAT16)
    run(case, fused=False)
    case.check()
    assert library.calls[-1].epilogue == Epilogue.DEFAULT


# What the library is asked for, A being our b and its rows our columns: N 6, K 5, M 3.
ASKED = {
    "forward": (Epilogue.DEFAULT, (1, 0), 0.0),
    "bias": (Epilogue.BIAS, (1, 0), 0.0),
    "bias and residual": (Epilogue.BIAS, (1, 0), 1.0),
    "residual": (Epilogue.DEFAULT, (1, 0), 1.0),
    "bias and gelu": (Epilogue.GELU_AUX_BIAS, (1, 0), 0.0),
    "gelu": (Epilogue.GELU_AUX, (1, 0), 0.0),
    "dx": (Epilogue.DEFAULT, (0, 0), 0.0),
    "dx through gelu": (Epilogue.DGELU, (0, 0), 0.0),
    "dw": (Epilogue.DEFAULT, (0, 1), 0.0),
    "dw added": (Epilogue.DEFAULT, (0, 1), 1.0),
    "dw and db": (Epilogue.BGRADB, (0, 1), 0.0),
    "dw and db added": (Epilogue.BGRADB, (0, 1), 1.0),
    "logits": (Epilogue.DEFAULT, (1, 0), 0.0),
}
SHAPES_ASKED = {NT: ((5, 6), (5, 3)), NN: ((6, 5), (5, 3)), TN: ((6, 5), (3, 5))}  # of A and B, by columns


@pytest.mark.parametrize("form", FORMS)
def test_what_the_library_is_asked_for(library, arrays, form):
    case = Case(arrays, form, 3, 6, 5, BFLOAT16)
    run(case)
    (call,) = library.calls
    assert (call.epilogue, call.turned, call.beta) == ASKED[form]
    a_shape, b_shape = SHAPES_ASKED[case.options[0]]
    narrow, result = np.dtype(BFLOAT16), np.dtype(case.result)
    # Rows of ours lie without gaps: a column of the library's is as long as the step to the next.
    assert call.layouts[0] == (narrow, a_shape, a_shape[0])
    assert call.layouts[1] == (narrow, b_shape, b_shape[0])
    assert call.layouts[2] == call.layouts[3] == (result, (6, 3), 6)
    c, a, b, _, extra = case.arrays
    added = extra.address if "residual" in form else c.address
    assert call.addresses == (b.address, a.address, added, c.address)
    assert call.workspace[1] == WORKSPACE
    assert call.workspace[0] % 256 == 0
    assert (call.algorithm, call.stream) == (1001, 4711)
    if "gelu" in form:
        names = fake_cublaslt.MatmulDescAttribute
        assert call.attributes[names.EPILOGUE_AUX_POINTER] == extra.address
        assert call.attributes[names.EPILOGUE_AUX_LD] == 6


def test_rows_apart_in_memory(library, arrays):
    """Views of wider matrices: the step from row to row is the library's leading dimension."""
    c, a, b = arrays.empty(3, 16), arrays.normal(3, 24), arrays.normal(6, 40)
    views = [seen(x[:, 2 : 2 + n]) for x, n in ((c, 6), (a, 5), (b, 5))]
    plan = Plan(describe(*views, NT))
    plan.run(plan.algorithms()[0], *views)
    (call,) = library.calls
    assert [layout[2] for layout in call.layouts] == [40, 24, 16, 16]
    np.testing.assert_allclose(c[:, 2:8], a[:, 2:7] @ b[:, 2:7].T, rtol=1e-4)
    assert np.isnan(c[:, [0, 1, 8, 15]]).all()


def test_a_plan_is_for_any_arrays_of_its_shape(library, arrays):
    first, again = (Case(arrays, "bias and gelu", 8, 16, 32, BFLOAT16) for _ in range(2))
    plan = Plan(first.product)
    for case in (first, again):
        plan.run(plan.algorithms()[0], *case.arrays)
    made = len(library.made)
    plan.run(b"\0" * 64, *again.arrays)
    assert len(library.made) == made, "a call makes no descriptions"
    first.check()
    again.check()


def test_the_library_is_told_the_alignment_and_the_workspace(library):
    names = fake_cublaslt.MatmulPreferenceAttribute
    memory = np.zeros(2**16, np.uint8)
    start = -memory.ctypes.data % 512
    arrays = [memory[start + at : start + at + 4 * 64].view(np.float32).reshape(8, 8) for at in (0, 1024, 2048 + 16)]
    for views, alignment in ((arrays[:2] + arrays[:1], 256), (arrays, 16)):
        Plan(describe(*(seen(x) for x in views), NT)).algorithms()
        assert library.preference[names.MAX_WORKSPACE_BYTES] == WORKSPACE
        assert {library.preference[getattr(names, f"MIN_ALIGNMENT_{x}_BYTES")] for x in "ABCD"} == {alignment}


def test_what_the_library_does_not_do(library, arrays):
    mixed = describe(seen(arrays.empty(3, 4)), seen(arrays.normal(3, 5)), seen(arrays.normal(4, 5, dtype=BFLOAT16)), NT)
    assert not supports(mixed)
    case = Case(arrays, "bias and residual", 3, 4, 5, BFLOAT16)
    c, a, b, bias, extra = case.arrays
    assert not supports(describe(c, a, b, NT, True, 2, bias, extra)), "C is one matrix"
    wide = seen(arrays.normal(3, 4))
    assert not supports(describe(c, a, b, NT, epilogue=2, bias=bias, extra=wide))


def test_no_algorithm_is_no_error(library, arrays):
    library.aligned_only = True
    assert Plan(Case(arrays, "bias", 3, 5, 7, BFLOAT16).product).algorithms() == []
    assert len(Plan(Case(arrays, "bias", 8, 16, 24, BFLOAT16).product).algorithms()) == 3


def test_the_interpreter_has_no_library():
    with pytest.raises(RuntimeError, match="no GPU"):
        cublaslt.library()


def test_the_fake_has_the_numbers_of_nvmath():
    lt = pytest.importorskip("nvmath.bindings.cublasLt")
    for name in ("Epilogue", "MatmulDescAttribute", "MatmulPreferenceAttribute"):
        for member in getattr(FakeCublasLt, name):
            assert getattr(lt, name)[member.name] == member
    assert lt.matmul_heuristic_result_dtype == FakeCublasLt.matmul_heuristic_result_dtype
    for attribute, dtype in fake_cublaslt.DESCRIPTION_TYPES.items():
        assert np.dtype(lt.get_matmul_desc_attribute_dtype(attribute)) == dtype
    for attribute in fake_cublaslt.MatmulPreferenceAttribute:
        wanted = FakeCublasLt().get_matmul_preference_attribute_dtype(attribute)
        assert np.dtype(lt.get_matmul_preference_attribute_dtype(attribute)) == wanted
    from nvmath import CudaDataType
    from nvmath.bindings.cublas import ComputeType

    assert cublaslt.TYPES == {"float32": CudaDataType.CUDA_R_32F, "bfloat16": CudaDataType.CUDA_R_16BF}
    assert cublaslt.IN_FLOAT32 == ComputeType.COMPUTE_32F
