"""What holds for every operation of every backend: names and arguments, bits that repeat, a NaN that is never lost."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import numba
import numpy as np
import pytest

from llmpy import UserError, kernels
from llmpy.kernels import OPERATIONS, cpu, reference
from llmpy.kernels.contract import Backend, Decoding
from llmpy.kernels.cpu.jit.compile import Kernel
from tests.kernels import calls
from tests.kernels.numerics import BFLOAT16, Arrays, assert_agree, dense, is_float

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "llmpy").rglob("*.py"))
INPUTS = [(operation, i) for operation in OPERATIONS for i in calls.make(operation, Arrays()).inputs]
NARROW_INPUTS = [  # where there is bfloat16 among the arguments; the weights of products are packed then
    (operation, i)
    for operation, i in INPUTS
    if operation not in ("adamw", "global_norm")
    and is_float(calls.make(operation, Arrays(activations=BFLOAT16)).arguments[i])
]


@pytest.fixture
def threads():
    """Sets the number of threads of the CPU backend, and puts it back."""
    before = numba.get_num_threads()
    yield cpu.set_threads
    cpu.set_threads(before)


def names_of_the_contract():
    return [name for name in (*vars(Backend), *Backend.__annotations__) if not name.startswith("_")]


def parameters(function):
    """(name, whether it has a default) of every parameter, in order; a class stands for its constructor."""
    function = function.dispatcher.py_func if isinstance(function, Kernel) else function
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.default is not inspect.Parameter.empty) for each in found if each.name != "self"]


def defaults(function):
    function = function.dispatcher.py_func if isinstance(function, Kernel) else function
    return [each.default for each in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("backend", kernels.BACKENDS)
@pytest.mark.parametrize("name", names_of_the_contract())
def test_a_backend_has_every_name_of_the_contract_with_its_signature(name, backend):
    if backend == "cuda":
        pytest.importorskip("triton")
    module = importlib.import_module(f"llmpy.kernels.{backend}")
    assert name in module.__all__
    if inspect.isfunction(expected := getattr(Backend, name, None)):
        assert parameters(getattr(module, name)) == parameters(expected)
        if name not in ("Decode", "Weight"):
            assert defaults(getattr(module, name)) == defaults(getattr(reference, name))


def test_a_decoder_is_called_the_same_way_on_every_backend():
    modules = [reference, cpu]
    if importlib.util.find_spec("triton"):
        modules.append(importlib.import_module("llmpy.kernels.cuda"))
    for module in modules:
        for method in ("__call__", "renew"):
            assert parameters(getattr(module.Decode, method)) == parameters(getattr(Decoding, method))


def test_operations_are_names_of_the_contract():
    assert set(OPERATIONS) <= set(names_of_the_contract())


def probes(tree):
    """(line, name) of every hasattr or getattr with a literal name."""
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    for call in (each for each in calls if ast.unparse(each.func) in ("hasattr", "getattr")):
        if isinstance(name := call.args[1], ast.Constant):
            yield call.lineno, name.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_code_asks_a_backend_whether_it_has_a_name(path):
    names = {*names_of_the_contract(), "BFLOAT16_IS_FASTER", "ATTENTION_TURNS", "room"}
    found = [(line, name) for line, name in probes(ast.parse(path.read_text(encoding="utf-8"))) if name in names]
    assert not found, f"{path.relative_to(ROOT)}: every backend has the names of llmpy/kernels/contract.py: {found}"


FOLDERS = {"cpu": {"gemm", "decode", "jit"}, "cuda": {"gemm", "attention", "decode", "primitives", "runtime"}}


@pytest.mark.parametrize("backend", FOLDERS)
def test_the_files_of_a_backend_are_the_operations_of_the_reference(backend):
    def operations(folder):
        entries = (ROOT / "llmpy" / "kernels" / folder).iterdir()
        return {entry.stem for entry in entries if entry.suffix == ".py" or (entry / "__init__.py").exists()}

    theirs = operations("reference")
    helpers = FOLDERS[backend] - theirs
    assert operations(backend) - helpers == theirs


def test_an_unknown_backend_is_one_clear_line():
    with pytest.raises(UserError, match="no kernels for 'tpu': use auto, reference, cpu, cuda, or cuda:N"):
        kernels.load("tpu")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("activations", [np.float32, BFLOAT16])
def test_the_same_bits_for_any_number_of_threads_and_again(operation, activations, threads, narrow):
    results = []
    for count in (1, 2, numba.config.NUMBA_NUM_THREADS, 1):
        threads(min(count, numba.config.NUMBA_NUM_THREADS))
        results.append([x.tobytes() for x in calls.make(operation, Arrays(activations=activations)).on(cpu)])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("operation", "argument"), INPUTS)
def test_a_nan_goes_on_to_all_that_depends_on_it(operation, argument, backend):
    check_nan(operation, argument, backend, Arrays())


@pytest.mark.parametrize(("operation", "argument"), NARROW_INPUTS)
def test_a_nan_goes_on_in_bfloat16_too(operation, argument, narrow):
    check_nan(operation, argument, narrow, Arrays(activations=BFLOAT16))


def check_nan(operation, argument, backend, arrays):
    """A run that broke must show. What depends on a number is what changes when the number does."""

    def results(run_by, arrays, change):
        call = calls.make(operation, arrays)
        changed = call.arguments[argument]
        changed[tuple(size // 2 for size in changed.shape)] += change
        return call.on(run_by)

    broken = results(backend, arrays, np.nan)
    before, after = (results(reference, Arrays(dtype=float), change) for change in (0, 1))
    for one, other, actual in zip(before, after, broken, strict=True):
        assert np.isnan(actual[one != other]).all()


@pytest.mark.parametrize("interleaved", [True, False])
def test_attention_with_a_rope_is_attention_over_rotated_queries_and_keys(backend, interleaved):
    """The gradients are those of q and k before the rotation, whether or not q and k are rotated in memory."""
    B, T, NH, NKV, hs = 2, 5, 4, 2, 8

    def gradients(run_by, arrays, by_attention):
        q, k, v = arrays.qkv(B, T, NH, NKV, hs)
        y, lse, dy = arrays.empty(B, T, NH, hs), arrays.empty(B, NH, T), arrays.normal(B, T, NH, hs)
        rope = arrays.empty(T, hs // 2), arrays.empty(T, hs // 2), interleaved
        angle = arrays.normal(T, hs // 2)
        rope[0][:], rope[1][:] = np.cos(angle), np.sin(angle)
        if by_attention:
            run_by.attention_forward(y, lse, q, k, v, rope)
            run_by.attention_backward(q, k, v, dy, q, k, v, y, lse, rope)
        else:
            for x in (q, k):
                run_by.rope_forward(x, *rope)
            run_by.attention_forward(y, lse, q, k, v)
            run_by.attention_backward(q, k, v, dy, q, k, v, y, lse)
            for x in (q, k):
                run_by.rope_backward(x, *rope)
        return y, lse, q, k, v

    expected = gradients(reference, Arrays(dtype=float), False)
    for one, other in zip(gradients(backend, Arrays(), True), expected, strict=True):
        assert_agree(one, other)


@pytest.mark.parametrize("rounding", [0, 77])
def test_the_reference_packs_a_weight_to_the_bits_of_the_cpu(narrow, halves, rounding):
    w = halves.normal(48, 32)
    weight = reference.Weight(np.zeros(reference.weight_size(48, 32), BFLOAT16), 48, 32)
    reference.pack_weight(weight, w, rounding)
    expected = dense(halves.packed(w, rounding))
    np.testing.assert_array_equal(weight.numbers.reshape(48, 32).astype(float), expected)
    x, y = np.eye(32, dtype=np.float32), np.zeros((32, 48), np.float32)
    reference.linear_forward(y, x, weight)
    np.testing.assert_array_equal(y.T.astype(float), expected)
