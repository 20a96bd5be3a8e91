"""Weights as they are stored: views of parameters, copies of another type, and no memory but for these."""

from dataclasses import replace

import numpy as np
import pytest

from llmpy import UserError
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import Copy, Matrix, StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.quant.types import BF16, F32, Q8_0
from llmpy.utils import memory, system_memory
from llmpy.utils.memory import MemoryPlan
from tests.model_files import CONFIG, LLAMA, llama_parameters, make_model

WIDE = replace(LLAMA, channels=64, heads=4, kv_heads=2, hidden=96, head_size=16)
ODD = replace(WIDE, hidden=20)  # its down projection has rows of 20 numbers
KINDS = {"llama": WIDE, "untied": replace(WIDE, tied=False, qkv_bias=True), "gpt2": GPT2Config(61, 9, 2, 2, 32)}


def parameters_of(config):
    return llama_parameters(config) if isinstance(config, LlamaConfig) else make_model(config).parameters


def numbers(stored):
    """Everything, by layer and name, in float32."""
    return {key: t.dequantize() if isinstance(t, Matrix) else t for key, t in stored.tensors.items()}


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
def test_it_is_a_view_of_the_parameters_in_pieces(config):
    parameters = parameters_of(config)
    stored = StoredWeights.of(parameters, config)
    in_use = sum(spec.size // spec.shape[0] * (spec.rows or spec.shape[0]) for spec in config.parameter_table())
    assert sum(tensor.size for tensor in numbers(stored).values()) == in_use
    for tensor in stored.tensors.values():
        assert np.shares_memory(tensor.data if isinstance(tensor, Matrix) else tensor, parameters.flat)
    parameters.flat[:] += 1
    np.testing.assert_array_equal(stored.embedding.dequantize(), parameters.wte[: config.vocab_size])
    np.testing.assert_array_equal(stored.embedding.rows(np.array([[3, 0], [3, 1]])), parameters.wte[[[3, 0], [3, 1]]])
    assert stored.kinds == {"F32": stored.nbytes}


def test_the_pieces_of_a_llama():
    config = KINDS["untied"]
    parameters = parameters_of(config)
    stored = StoredWeights.of(parameters, config)
    layer, ours = stored.layers[1], parameters.layers[1]
    for fused, pieces in ((ours.qkvw, (layer.q, layer.k, layer.v)), (ours.gateupw, (layer.gate, layer.up))):
        np.testing.assert_array_equal(np.concatenate([piece.dequantize() for piece in pieces]), fused)
        assert [piece.address - pieces[0].address for piece in pieces][1] == pieces[0].nbytes
    assert [layer.q.shape, layer.k.shape, layer.v.shape] == [(64, 64), (32, 64), (32, 64)]
    np.testing.assert_array_equal(np.concatenate([layer.qb, layer.kb, layer.vb]), ours.qkvb)
    np.testing.assert_array_equal(layer.down.dequantize(), ours.downw)
    np.testing.assert_array_equal(stored.head.dequantize(), parameters.lm_headw)
    tied = StoredWeights.of(parameters_of(WIDE), WIDE)
    assert tied.head is tied.embedding
    assert tied.layers[0].qb is tied.layers[0].kb is tied.layers[0].vb is None
    assert len(list(tied.matrices())) == 1 + 3 * 7


def test_the_pieces_of_a_gpt2():
    config = KINDS["gpt2"]
    parameters = parameters_of(config)
    stored = StoredWeights.of(parameters, config)
    for name in ("qkv", "attproj", "fc", "fcproj"):
        np.testing.assert_array_equal(getattr(stored.layers[1], name).dequantize(), parameters[f"{name}w"][1])
    for name in ("ln1w", "ln1b", "qkvb", "attprojb", "ln2w", "ln2b", "fcb", "fcprojb"):
        np.testing.assert_array_equal(getattr(stored.layers[1], name), parameters[name][1])
    for name in ("lnfw", "lnfb", "wpe"):
        np.testing.assert_array_equal(getattr(stored, name), parameters[name])
    assert stored.head is stored.embedding
    assert stored.head.shape == (61, 32)  # without the padding


def test_some_rows_are_a_matrix_where_they_lie():
    whole = Matrix.of(np.arange(12, dtype=np.float32).reshape(4, 3))
    part = whole[1:3]
    assert part.shape == (2, 3)
    assert part.address == whole.address + whole.row_bytes == whole.address + 12
    np.testing.assert_array_equal(part.dequantize(), [[3, 4, 5], [6, 7, 8]])


# ---- of another type -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("kind", "error"), [("F32", 0), ("BF16", 2**-8), ("Q8_0", 2**-7)])
def test_a_copy_of_another_type_is_as_close_as_the_type_allows(config, kind, error):
    stored = StoredWeights.of(parameters_of(config), config)
    copy = stored.converted(kind)
    assert copy.kinds == {kind: copy.nbytes}
    for key, tensor in numbers(copy).items():
        expected = numbers(stored)[key]
        if isinstance(copy.tensors[key], Matrix):
            np.testing.assert_allclose(tensor, expected, rtol=0, atol=error * np.abs(expected).max())
        else:
            assert tensor is expected
    assert (copy.head is copy.embedding) == (stored.head is stored.embedding)


def test_what_is_of_the_type_is_not_copied():
    stored = StoredWeights.of(parameters_of(WIDE), WIDE)
    assert list(stored.converted("F32").matrices()) == list(stored.matrices())
    once = stored.converted("Q8_0")
    again = once.converted("Q8_0")
    assert list(again.matrices()) == list(once.matrices())


def test_rows_that_blocks_do_not_fill_are_bfloat16():
    copy = StoredWeights.of(parameters_of(ODD), ODD).converted("Q8_0")
    assert {layer.down.kind for layer in copy.layers} == {BF16}
    assert {layer.up.kind for layer in copy.layers} == {copy.head.kind} == {Q8_0}
    assert copy.kinds.keys() == {"Q8_0", "BF16"}


def test_there_must_be_memory_for_all_copies(monkeypatch):
    stored = StoredWeights.of(parameters_of(WIDE), WIDE)
    needed = []
    monkeypatch.setattr(system_memory, "available_memory", lambda: needed.append(1) or system_memory.RESERVE + 1000)
    monkeypatch.setattr(memory, "_map", lambda size: pytest.fail("taken"))
    with pytest.raises(UserError, match=r"needs 0\.0 GB of memory and .* free: choose a smaller model$"):
        stored.converted("BF16")
    assert len(needed) == 1  # asked once, for all of them


def test_a_copy_is_made_once_there_is_memory_and_may_be_of_any_floats(monkeypatch):
    made = []
    take = MemoryPlan.take
    monkeypatch.setattr(MemoryPlan, "take", lambda *args: made.append("memory") or take(*args))
    double = np.arange(6.0).reshape(2, 3).T  # neither float32 nor in order
    copy = Copy(F32, (3, 2), lambda data: made.append("filled") or Copy.of(double, F32).fill(data))
    tensors = numbers(StoredWeights(CONFIG, {(None, "embedding"): copy}))
    assert made == ["memory", "filled"]
    np.testing.assert_array_equal(tensors[None, "embedding"], double)
