"""A token decoded by the whole model in one call, against the float64 reference: families, types of weights, shapes."""

from dataclasses import replace
from types import SimpleNamespace

import ml_dtypes
import numba
import numpy as np
import pytest

from llmpy.kernels import cpu, reference
from llmpy.kernels.cpu.decode import decode
from llmpy.models.gpt2 import GPT2Config
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.models.parameters import Parameters, total_size
from llmpy.models.rope import rotations
from llmpy.quant.types import BF16, F16, F32, Q4_0, Q4_1, Q4_K, Q6_K, Q8_0
from tests.kernels.numerics import rms
from tests.kernels.test_dequantize import HALVES, name, stored

GPT2 = GPT2Config(vocab_size=101, context=70, layers=2, heads=3, channels=60)
LLAMA = LlamaConfig(vocab_size=75, context=70, layers=2, heads=6, kv_heads=2, channels=48, hidden=52, tied=False)
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "halves and biases": replace(LLAMA, rope_interleaved=False, qkv_bias=True, head_size=20, tied=True),
    "one head": replace(LLAMA, heads=1, kv_heads=1, channels=32, head_size=32),
}


def weights_of(config, scale=0.3):
    table = config.parameter_table()
    random = np.random.default_rng(3)
    flat = (random.standard_normal(total_size(table)) * scale).astype(np.float32)
    return StoredWeights.of(Parameters(table, flat), config)


def small(kind, OC, C, seed):
    """A weight of any bits whose numbers are about as large as those of a model: scores of attention stay small."""
    weight = stored(kind, OC, C, seed)
    weight.data.flags.writeable = True
    factor, blocks = 0.06 / rms(weight.dequantize()), weight.data.reshape(-1, kind.bytes)
    for at in HALVES.get(kind.name, []):
        halves = np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16) * factor
        blocks[:, at : at + 2] = halves.astype(np.float16).view(np.uint8)
    return weight


def wide_llama(kind):
    """With matrices of any bits, of a type whose rows come in blocks."""
    weights = weights_of(replace(LLAMA, heads=4, kv_heads=2, channels=256, hidden=512, head_size=64))
    seed = 0
    tensors = dict(weights.tensors)
    for key, tensor in weights.tensors.items():
        if hasattr(tensor, "kind"):
            seed += 1
            tensors[key] = small(kind, *tensor.shape, seed)
    return StoredWeights(weights.config, tensors)


def decoders(weights, slots, dtype=np.float32):
    """The CPU's and the reference's, over caches of the same content."""
    c = weights.config
    kv_heads = getattr(c, "kv_heads", c.heads)
    shape = c.layers, slots, kv_heads, c.context, c.head_size
    random = np.random.default_rng(4)
    caches = [random.standard_normal(shape).astype(dtype).swapaxes(2, 3) for _ in range(2)]
    angles = rotations(c, c.context) if isinstance(c, LlamaConfig) else ()
    ours = cpu.Decode(c, weights, *caches, *angles)
    exact = [cache.astype(np.float64) for cache in caches]
    theirs = reference.Decode(c, weights, *exact, *angles)
    return SimpleNamespace(ours=ours, theirs=theirs, caches=caches, exact=exact, V=c.vocab_size)


def decoded(decode, tokens, slots, positions):
    logits = np.full((len(tokens), decode.config.vocab_size), np.nan, np.float32)
    decode(logits, tokens, slots, positions)
    return logits.astype(np.float64)


def check(both, slots, positions, tolerance):
    tokens = np.random.default_rng(5).integers(0, both.V, len(slots), np.int32)
    slots, positions = np.array(slots, np.int32), np.array(positions, np.int32)
    expected, actual = (decoded(each, tokens, slots, positions) for each in (both.theirs, both.ours))
    assert rms(actual - expected) < tolerance * rms(expected)
    for cache, exact in zip(both.caches, both.exact, strict=True):
        assert rms(cache.astype(np.float64) - exact) < tolerance * rms(exact)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize(
    ("slots", "positions"), [([0], [0]), ([2], [69]), ([1, 3], [5, 40]), ([4, 0, 2], [0, 69, 33]), (range(9), range(9))]
)
def test_it_agrees_with_the_reference(config, slots, positions):
    check(decoders(weights_of(config), max(slots) + 1), slots, positions, 3e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_with_a_cache_and_weights_in_bfloat16(config):
    check(
        decoders(weights_of(config, 0.1).converted("BF16"), 6, ml_dtypes.bfloat16),
        [3, 5, 0, 1, 2],
        [9, 0, 1, 69, 30],
        0.01,
    )


@pytest.mark.parametrize("kind", [F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q6_K], ids=name)
@pytest.mark.parametrize("sequences", [1, 3, 5])
def test_weights_as_they_are_stored(kind, sequences):
    """Vectors in bytes are a 127th of their largest number from what they were."""
    tolerance = {F32: 1e-5, F16: 1e-5, BF16: 0.02}.get(kind, 0.05)
    check(decoders(wide_llama(kind), sequences), range(sequences), [69, 0, 3, 40, 8][:sequences], tolerance)


def test_matrices_of_several_types_in_one_layer():
    weights = wide_llama(Q4_K)
    tensors = dict(weights.tensors)
    for number, layer_name in enumerate(("q", "v", "down", "attproj")):
        tensor = tensors[1, layer_name]
        tensors[1, layer_name] = small([Q6_K, F32, BF16, F16][number], *tensor.shape, number)
    check(decoders(StoredWeights(weights.config, tensors), 4), [3, 1, 0], [5, 6, 7], 0.05)


@pytest.mark.parametrize("kind", ["F32", "BF16", "Q8_0"])
def test_the_same_bits_alone_and_beside_others_and_for_any_number_of_threads(kind, monkeypatch):
    monkeypatch.setattr(decode, "ALONE", 0)
    weights = wide_llama({"F32": F32, "BF16": BF16, "Q8_0": Q8_0}[kind])
    tokens = np.random.default_rng(6).integers(0, weights.config.vocab_size, 7, np.int32)
    slots, positions = np.arange(7, dtype=np.int32), np.arange(3, 10, dtype=np.int32)
    before = numba.get_num_threads()
    try:
        results = []
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            cpu.set_threads(threads)
            both = decoders(weights, 7)
            results.append(decoded(both.ours, tokens, slots, positions))
            alone = decoders(weights, 7)
            rows = [decoded(alone.ours, tokens[s : s + 1], slots[s : s + 1], positions[s : s + 1]) for s in range(7)]
            results.append(np.concatenate(rows))
    finally:
        cpu.set_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("where", ["embedding", "cache", "weight"])
def test_what_is_not_a_number_shows(where):
    both = decoders(weights_of(LLAMA), 1)
    if where == "cache":
        both.caches[1][0, 0, 3, 1, 5] = np.nan
    else:
        weights = both.ours._kept[0]
        data = (weights.embedding if where == "embedding" else weights.layers[0].down).data
        data.flags.writeable = True
        data[0, :4] = np.array([np.nan], np.float32).view(np.uint8)
    assert np.isnan(decoded(both.ours, np.array([0], np.int32), np.array([0]), np.array([9]))).any()
