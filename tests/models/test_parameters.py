"""The table of parameters: sizes as the field knows them, views into one buffer, PyTorch's initial values."""

import numpy as np
import pytest

from llmpy.models.gpt2 import GPT2Config, gpt2_table
from llmpy.models.llama import LlamaConfig, llama_table
from llmpy.models.parameters import Parameters, initialize, total_size
from llmpy.models.presets import from_descriptor

TINY = GPT2Config(vocab_size=131, context=9, layers=3, heads=2, channels=16)


@pytest.fixture
def parameters():
    table = gpt2_table(TINY)
    return Parameters(table, np.full(total_size(table), np.nan, np.float32))


@pytest.mark.parametrize(
    ("descriptor", "parameters"),
    [
        ("d12", 124_475_904),
        ("d24", 354_871_296),
        ("d36", 774_090_240),
        ("d48", 1_557_686_400),
        ("gpt3:c768", 125_262_336),
        ("llama:260K", 260_032),
        ("llama:15M", 15_191_712),
        ("llama:110M", 109_529_856),
        ("llama:1B", 1_235_814_400),
        ("llama:1.1B", 1_100_048_384),
    ],
)
def test_well_known_models_have_their_size(descriptor, parameters):
    assert total_size(from_descriptor(descriptor).parameter_table()) == parameters


def test_the_table_decays_matrices_and_nothing_else():
    for spec in gpt2_table(TINY):
        assert spec.decay == (len(spec.shape) - spec.per_layer == 2), spec.name
        assert spec.transposed == (spec.name in ("qkvw", "attprojw", "fcw", "fcprojw"))


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_the_pieces_of_a_llamas_tensors_are_whole(tied, qkv_bias):
    config = LlamaConfig(97, 16, layers=2, heads=6, kv_heads=2, channels=24, hidden=40, tied=tied, qkv_bias=qkv_bias)
    table = {spec.name: spec for spec in llama_table(config)}
    assert ("lm_headw" in table, "qkvb" in table) == (not tied, qkv_bias)
    assert table["qkvw"].shape == (2, (6 + 2 * 2) * 4, 24)
    for spec in table.values():
        assert bool(spec.parts) != bool(spec.huggingface), spec.name
        assert spec.decay == (len(spec.shape) - spec.per_layer == 2), spec.name
        if spec.parts:
            assert sum(rows for _, rows in spec.parts) == spec.shape[1]


def test_views_lie_in_the_buffer_one_after_the_other(parameters):
    parameters.flat[:] = np.arange(parameters.flat.size)
    start = 0
    for spec, view in parameters.items():
        assert view.shape == spec.shape
        assert view.reshape(-1)[0] == start
        assert parameters.slices[spec.name] == slice(start, start + spec.size)
        assert parameters[spec.name] is view is getattr(parameters, spec.name)
        start += spec.size
    assert start == parameters.flat.size
    parameters.wpe[0, 0] = -1
    assert parameters.flat[parameters.slices["wpe"].start] == -1


def test_an_unknown_name_is_no_attribute(parameters):
    with pytest.raises(AttributeError, match="no_such"):
        _ = parameters.no_such


def test_initial_values_are_pytorchs(parameters):
    torch = pytest.importorskip("torch")
    initialize(parameters, 42)
    torch.manual_seed(42)

    def drawn(std, *shape):
        return torch.empty(*shape).normal_(0.0, std).numpy()

    C, L = TINY.channels, TINY.layers
    close = {"rtol": 2e-5, "atol": 1e-7}
    np.testing.assert_allclose(parameters.wte[: TINY.vocab_size], drawn(0.02, TINY.vocab_size, C), **close)
    np.testing.assert_allclose(parameters.wpe, drawn(0.02, TINY.context, C), **close)
    residual = 0.02 / (2 * L) ** 0.5
    for layer in range(L):
        np.testing.assert_allclose(parameters.qkvw[layer], drawn(0.02, 3 * C, C), **close)
        np.testing.assert_allclose(parameters.attprojw[layer], drawn(residual, C, C), **close)
        np.testing.assert_allclose(parameters.fcw[layer], drawn(0.02, 4 * C, C), **close)
        np.testing.assert_allclose(parameters.fcprojw[layer], drawn(residual, C, 4 * C), **close)


def test_norms_begin_at_one_biases_and_padding_at_zero(parameters):
    initialize(parameters, 1)
    assert parameters.wte.shape[0] == 256
    assert not parameters.wte[TINY.vocab_size :].any()
    for spec, view in parameters.items():
        assert np.isfinite(view).all()
        if spec.init != "normal":
            assert (view == (spec.init == "ones")).all(), spec.name


def test_a_seed_repeats_and_another_does_not(parameters):
    initialize(parameters, 1)
    first = parameters.flat.copy()
    initialize(parameters, 2)
    assert not np.array_equal(first, parameters.flat)
    initialize(parameters, 1)
    np.testing.assert_array_equal(first, parameters.flat)
