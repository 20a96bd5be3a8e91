"""A token decoded on the device, against the float64 reference: families, types of weights, caches, sequences."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from tests.kernels import on_device  # noqa: F401  (before Triton is imported)

pytest.importorskip("triton")

from llmpy.errors import UserError
from llmpy.kernels import cuda, reference
from llmpy.kernels.cuda.decode import upload_weights
from llmpy.kernels.cuda.runtime.array import DeviceArray
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import Copy, StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters, total_size
from llmpy.models.rope import rotations
from llmpy.quant.types import BF16, F16, F32, Q4_0, Q6_K, Q8_0
from tests.kernels.numerics import relative_error

GPT2 = GPT2Config(vocab_size=101, context=40, layers=2, heads=3, channels=60)
LLAMA = LlamaConfig(vocab_size=75, context=40, layers=2, heads=6, kv_heads=2, channels=48, hidden=52, tied=False)
WIDE = replace(LLAMA, heads=4, channels=64, hidden=96, head_size=32)  # rows of whole blocks
CONFIGS = {
    "gpt2": GPT2,
    "odd heads": replace(GPT2, channels=75),
    "llama": LLAMA,
    "halves and biases": replace(LLAMA, rope_interleaved=False, qkv_bias=True, head_size=20, tied=True),
    "wide": replace(WIDE, channels=160, layers=1),  # the residual stream in several parts
}
PLACES = [([0], [0]), ([1], [39]), ([4, 0, 2], [0, 39, 33])]


def weights_of(config, scale=0.3):
    table = config.parameter_table()
    flat = (np.random.default_rng(3).standard_normal(total_size(table)) * scale).astype(np.float32)
    return StoredWeights.of(Parameters(table, flat), config)


def as_kinds(weights, *kinds):
    """The matrices in turn of these types."""
    tensors, number = dict(weights.tensors), 0
    for key, tensor in weights.tensors.items():
        if hasattr(tensor, "kind"):
            kind = kinds[number % len(kinds)]
            number += 1
            tensors[key] = Copy.of(tensor.dequantize(), kind)
    return StoredWeights(weights.config, tensors)


def decoders(weights, slots, dtype=np.float32):
    """Ours and the reference's, over caches of the same content, and those caches."""
    c = weights.config
    shape = c.layers, slots, getattr(c, "kv_heads", c.heads), c.context, c.head_size
    random = np.random.default_rng(4)
    exact = [random.standard_normal(shape).astype(dtype) for _ in range(2)]
    caches = [DeviceArray.of(cache).swapaxes(2, 3) for cache in exact]
    exact = [cache.swapaxes(2, 3).astype(np.float64) for cache in exact]
    angles = rotations(c, c.context) if isinstance(c, LlamaConfig) else ()
    ours = cuda.Decode(c, weights, *caches, *(DeviceArray.of(each) for each in angles))
    return ours, reference.Decode(c, weights, *exact, *angles), caches, exact


def decoded(decode, tokens, slots, positions):
    logits = np.full((len(tokens), decode.config.vocab_size), np.nan, np.float32)
    decode(logits, tokens, np.array(slots, np.int32), np.array(positions, np.int32))
    return logits


def check(weights, slots, positions, tolerance, dtype=np.float32, narrow=1e-5):
    ours, theirs, caches, exact = decoders(weights, max(slots) + 1, dtype)
    tokens = np.random.default_rng(5).integers(0, weights.config.vocab_size, len(slots), np.int32)
    expected, actual = (decoded(each, tokens, slots, positions) for each in (theirs, ours))
    assert relative_error(actual, expected.astype(float)) < tolerance
    for cache, other in zip(caches, exact, strict=True):
        assert relative_error(cache.numpy(), other) < narrow


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(("slots", "positions"), PLACES)
def test_it_agrees_with_the_reference(config, slots, positions):
    check(weights_of(config), slots, positions, 3e-6)


def test_more_sequences_than_a_program_has():
    check(weights_of(replace(LLAMA, layers=1)), range(18), range(18), 3e-6)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_with_a_cache_and_weights_in_bfloat16(config):
    weights = weights_of(config, 0.1).converted("BF16")
    check(weights, [3, 5, 0], [9, 0, 39], 0.01, ml_dtypes.bfloat16, 0.004)


@pytest.mark.parametrize("kind", [F16, BF16, Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("config", [WIDE, replace(GPT2, channels=96)], ids=["llama", "gpt2"])
def test_weights_are_read_as_they_are_stored(kind, config):
    """As exactly as float32, whose bits activations keep beside weights of any type."""
    check(as_kinds(weights_of(config), kind), [0, 2], [39, 3], 3e-5, narrow=3e-5)


def test_matrices_of_several_types_in_one_layer():
    """What is read as one becomes of one type."""
    check(as_kinds(weights_of(WIDE), Q8_0, F32, BF16), [1], [20], 3e-3, narrow=3e-3)


def test_types_that_kernels_do_not_read_become_bfloat16():
    weights = weights_of(replace(WIDE, channels=256, hidden=256, head_size=64))
    random, tensors = np.random.default_rng(6), dict(weights.tensors)
    for number, (key, tensor) in enumerate(weights.tensors.items()):
        if hasattr(tensor, "kind"):
            kind = (Q4_0, Q6_K)[number % 2]
            blocks = random.integers(0, 256, (tensor.shape[0], kind.row_bytes(256)), np.uint8)
            halves = blocks.reshape(-1, kind.bytes)[:, slice(0, 2) if kind == Q4_0 else slice(208, 210)]
            halves[...] = random.uniform(0.0001, 0.001, (len(halves), 1)).astype(np.float16).view(np.uint8)
            tensors[key] = type(tensor)(kind, tensor.shape, blocks)
    placed = cuda.upload_weights(files := StoredWeights(weights.config, tensors))
    assert {tensor.kind for tensor in placed.tensors.values() if hasattr(tensor, "kind")} == {BF16}
    for layer, name in ((0, "k"), (1, "down"), (None, "embedding")):
        expected = files.tensors[layer, name].dequantize()
        assert relative_error(placed.tensors[layer, name].dequantized().numpy(), expected.astype(float)) < 0.003
    check(files, [0], [7], 0.03, narrow=0.01)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_the_same_bits_alone_and_beside_others(kind):
    """Of the first sequences of programs: the interpreter's products are NumPy's, which adds up a matrix's last rows in
    another order."""
    weights = weights_of(WIDE).converted(kind)
    tokens = np.random.default_rng(6).integers(0, WIDE.vocab_size, 18, np.int32)
    slots, positions = np.arange(18), np.arange(3, 21)
    together = decoded(decoders(weights, 18)[0], tokens, slots, positions)
    alone = decoders(weights, 18)[0]
    for s in (0, 16):
        row = decoded(alone, tokens[s : s + 1], slots[s : s + 1], positions[s : s + 1])
        np.testing.assert_array_equal(row[0], together[s])


@pytest.mark.parametrize("config", [GPT2, WIDE], ids=["gpt2", "llama"])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_tokens_are_embedded_on_the_device(config, kind):
    weights = weights_of(config).converted(kind)
    tokens, positions = np.array([7, 0, 70], np.int32), np.array([3, 0, 9], np.int32)
    x = weights.embedding.rows(tokens) + (weights.wpe[positions] if config is GPT2 else 0)
    ours = decoders(weights, 3)[0]
    read = cuda.empty(3, config.channels, dtype=ml_dtypes.bfloat16)
    cuda.embed_rows(read, ours.weights, tokens, positions)
    np.testing.assert_array_equal(read.numpy(), x.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_a_matrix_for_products_of_many_rows(kind, dtype):
    array = np.random.default_rng(2).standard_normal((37, 96)).astype(np.float32)
    files = as_kinds(StoredWeights(LLAMA, {(None, "embedding"): cuda.matrix_of(array)}), kind).embedding
    rows = cuda.upload_weights(StoredWeights(LLAMA, {(None, "embedding"): files})).embedding[5:30]
    assert rows.shape == (25, 96)
    np.testing.assert_array_equal(rows.dequantized(dtype).numpy(), files.dequantize()[5:30].astype(dtype))


def test_weights_that_lie_on_the_device_stay_there():
    table = WIDE.parameter_table()
    flat = DeviceArray.of((np.random.default_rng(3).standard_normal(total_size(table)) * 0.3).astype(np.float32))
    parameters = Parameters(table, flat)
    weights = StoredWeights.of(parameters, WIDE, cuda.matrix_of)
    placed = cuda.upload_weights(weights)
    assert placed.layers[1].gateup.data.address == parameters.layers[1].gateupw.address
    assert placed.layers[0].qkv.shape == parameters.layers[0].qkvw.shape
    assert cuda.upload_weights(placed) is placed
    ours = decoders(weights_of(WIDE), 1)[0]
    there = cuda.Decode(WIDE, weights, ours.keys, ours.values, *ours.angles)
    token = np.array([3], np.int32)
    before = decoded(there, token, [0], [5])
    np.testing.assert_array_equal(before, decoded(ours, token, [0], [5]))
    parameters.lnfw.fill(0)
    assert not decoded(there, token, [0], [5]).any()


@pytest.mark.parametrize("where", ["embedding", "cache", "weight"])
def test_what_is_not_a_number_shows(where):
    weights = weights_of(LLAMA)
    ours, _, caches, _ = decoders(weights, 1)
    if where == "embedding":
        ours.weights.embedding.data[0, 7:8] = np.nan
    elif where == "cache":
        caches[1][0, 0, 3, 1, 5:6] = np.nan
    else:
        ours.weights.layers[0].down.data[0, :1] = np.nan
    with np.errstate(invalid="ignore"):  # which the interpreter's NumPy would say, too
        assert np.isnan(decoded(ours, np.array([0], np.int32), [0], [9])).any()


def test_a_card_that_is_too_small_is_told(monkeypatch):
    weights = weights_of(LLAMA)
    needed = sum(getattr(tensor, "nbytes", 0) for tensor in weights.tensors.values())
    monkeypatch.setattr(upload_weights, "headroom", lambda: needed - 1)
    with pytest.raises(UserError, match=r"the weights take .* GB and the GPU has .* GB free"):
        cuda.upload_weights(weights)
    monkeypatch.setattr(upload_weights, "headroom", lambda: needed)
    cuda.upload_weights(weights)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4, 3, 5), (2, 3, 4, 5)])
def test_copies_between_parts(shape):
    whole = DeviceArray.of(np.arange(2 * np.prod(shape), dtype=np.float32).reshape(*shape[:-1], -1))
    source, to = whole[..., : shape[-1]], cuda.empty(*shape, dtype=ml_dtypes.bfloat16)
    cuda.copy(to, source)
    np.testing.assert_array_equal(to.numpy(), source.numpy().astype(ml_dtypes.bfloat16))


def test_copies_that_overlap():
    array = np.arange(60, dtype=np.float32).reshape(10, 6)
    placed = DeviceArray.of(array)
    cuda.copy(placed[:8, :4], placed[2:, 2:])
    cuda.copy(placed[3:3], placed[:0])
    array[:8, :4] = array[2:, 2:].copy()
    np.testing.assert_array_equal(placed.numpy(), array)


@pytest.mark.parametrize("key", [None, (slice(1, 3), None), (None, 2, ..., slice(0, 2), None), (0, None, 1, None)])
def test_axes_of_length_1(key):
    array = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
    np.testing.assert_array_equal(DeviceArray.of(array)[key].numpy(), array[key])
