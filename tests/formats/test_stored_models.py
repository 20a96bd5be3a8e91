"""Models opened as they are stored: every format, the same numbers as in float32, and no memory before it is needed."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

import llmpy
from llmpy import Engine, UserError
from llmpy.formats import llama2c, tensor_map
from llmpy.formats.gguf import llama as gguf_llama
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.llmc import model as llmc
from llmpy.formats.pytorch import meta_llama
from llmpy.kernels import reference
from llmpy.models.inference_weights import StoredWeights
from llmpy.models.llama import LlamaConfig
from llmpy.utils.memory import MemoryPlan
from tests.formats.damage import damaged, read_or_refuse
from tests.formats.test_huggingface import rewrite, shard, tensors_of
from tests.formats.test_meta_llama import named, write_checkpoint, write_folder
from tests.formats.test_pytorch_checkpoint import save, tensor
from tests.model_files import CONFIG, llama_parameters
from tests.models.test_inference_weights import numbers

LLAMA = LlamaConfig(vocab_size=40, context=9, layers=2, heads=4, kv_heads=2, channels=64, hidden=96)
ODD = replace(LLAMA, vocab_size=41, channels=36, heads=6, hidden=20, head_size=6)
LARGE = LlamaConfig(32000, 2048, layers=20, heads=16, channels=1024)  # a gigabyte
PARAMS = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}


def check_same(loaded, rtol=0.0):
    """As stored and as float32, it is one model, with what the config says of the order of its rows."""
    expected = numbers(StoredWeights.of(loaded.parameters, loaded.config))
    found = numbers(loaded.stored)
    assert found.keys() == expected.keys()
    for key, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[key], rtol=rtol, atol=0, err_msg=str(key))


def kinds_and_mapped(loaded):
    return {(matrix.kind.name, matrix.mapped) for matrix in loaded.stored.matrices()}


# ---- GGUF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_gguf_of_every_type(kind, architecture, tmp_path):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import QUANTS, write_llama

    config = replace(LLAMA, rope_interleaved=architecture == "llama", qkv_bias=architecture == "qwen2")
    config = replace(config, channels=256, hidden=512, head_size=64)
    path = write_llama(tmp_path / "m.gguf", config, llama_parameters(config), QUANTS[kind], layers=2)
    loaded = llmpy.load(path)
    assert loaded.config == config
    assert kinds_and_mapped(loaded) == {(kind, True)}
    check_same(loaded)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
def test_a_gguf_writes_the_text_that_its_numbers_write(kind, tmp_path):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import QUANTS, write_llama

    config = replace(LLAMA, channels=256, hidden=256, head_size=64)
    path = write_llama(tmp_path / "m.gguf", config, llama_parameters(config), QUANTS[kind], layers=2)
    loaded = llmpy.load(path)
    steps = list(Engine(loaded, "reference").generate([1, 2, 3], 5, temperature=0))
    assert all(0 <= token < 40 for [token] in steps)
    x = np.random.default_rng(1).standard_normal((3, 256))
    y, expected = np.empty((3, 256)), np.empty((3, 256))
    reference.linear_forward(y, x, loaded.stored.layers[1].gate)
    reference.linear_forward(expected, x, loaded.parameters.layers[1].gateupw[:256].astype(float))
    np.testing.assert_array_equal(y, expected)


# ---- llama2.c ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("config", [LLAMA, replace(ODD, tied=False)])
def test_a_model_of_llama2c_in_float32(version, config, tmp_path):
    llama2c.write_model(tmp_path / "m.bin", config, llama_parameters(config), version)
    loaded = llmpy.load(tmp_path / "m.bin")
    assert kinds_and_mapped(loaded) == {("F32", True)}
    check_same(loaded)


def test_eight_bits_of_llama2c_keep_their_values(tmp_path):
    parameters = llama_parameters(LLAMA)
    llama2c.write_model(tmp_path / "m.bin", LLAMA, parameters, 2)
    file = llama2c.Llama2cFile(tmp_path / "m.bin")
    assert file.header.group_size in (32, 64)
    loaded = llmpy.load(tmp_path / "m.bin")
    assert kinds_and_mapped(loaded) == {("Q8_0", False)}
    check_same(loaded, rtol=2**-11)
    part = next(part for part in tensor_map.parts(LLAMA) if part.stored_as == "up")
    blocks = loaded.stored.layers[0].up.data.reshape(96, 2, 34)
    np.testing.assert_array_equal(blocks[..., 2:].view(np.int8).reshape(96, 64), file.stored(part).values)


def test_eight_bits_in_groups_that_are_no_blocks_become_float32(tmp_path):
    llama2c.write_model(tmp_path / "m.bin", ODD, llama_parameters(ODD), 2)
    loaded = llmpy.load(tmp_path / "m.bin")
    assert kinds_and_mapped(loaded) == {("F32", False)}
    check_same(loaded)


# ---- Hugging Face, llm.c, Meta -------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_a_llama_of_hugging_face_keeps_the_order_of_its_files(interleaved, dtype, kind, tmp_path):
    config = replace(LLAMA, rope_interleaved=interleaved, tied=False, qkv_bias=True)
    huggingface.write_model(tmp_path, config, llama_parameters(config), dtype, shard_bytes=20_000)
    loaded = llmpy.load(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert loaded.config == replace(config, rope_interleaved=False)
    assert kinds_and_mapped(loaded) == {(kind, True)}
    check_same(loaded)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float32, "F32"), (np.float16, "F16"), (ml_dtypes.bfloat16, "BF16")], ids=str
)
@pytest.mark.parametrize("sharded", [False, True])
def test_a_gpt2_of_hugging_face_is_turned(dtype, kind, sharded, tmp_path, model):
    huggingface.write_model(tmp_path, CONFIG, model.parameters)
    rewrite(tmp_path, {name: tensor.astype(dtype) for name, tensor in tensors_of(tmp_path).items()})
    if sharded:
        shard(tmp_path)
    loaded = llmpy.load(tmp_path)
    assert kinds_and_mapped(loaded) == {(kind, True), (kind, False)}
    assert loaded.stored.embedding.mapped  # which is not turned
    check_same(loaded)


@pytest.mark.parametrize("shift", [1, 2, 4])
def test_numbers_that_begin_between_numbers_are_copied(shift, tmp_path):
    """A file may begin its tensors at any byte; products read whole numbers."""
    huggingface.write_model(tmp_path, LLAMA, llama_parameters(LLAMA))
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes((start - 8 + shift).to_bytes(8, "little") + data[8:start] + b" " * shift + data[start:])
    loaded = llmpy.load(tmp_path)
    assert kinds_and_mapped(loaded) == {("F32", shift == 4)}
    check_same(loaded)


def test_a_checkpoint_of_ours(run_folder):
    loaded = llmpy.load(run_folder)
    assert loaded.stored.lnfb[0] == 10
    check_same(loaded)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("bfloat16", "BF16")])
def test_a_model_of_llmc(dtype, kind, tmp_path, model):
    llmc.write_model(tmp_path / "m.bin", CONFIG, model.parameters, dtype)
    loaded = llmpy.load(tmp_path / "m.bin")
    assert kinds_and_mapped(loaded) == {(kind, True)}
    assert loaded.stored.head.shape == (61, 12)
    check_same(loaded)


def test_a_checkpoint_of_llama2c(tmp_path):
    write_checkpoint(tmp_path / "ckpt.pt", LLAMA, llama_parameters(LLAMA))
    loaded = llmpy.load(tmp_path / "ckpt.pt")
    assert {kind for kind, _ in kinds_and_mapped(loaded)} == {"F32"}
    check_same(loaded)


@pytest.mark.parametrize("count", [1, 2])
def test_a_folder_of_metas_is_put_together(count, tmp_path):
    config = replace(LLAMA, tied=False, context=2048)
    write_folder(tmp_path, config, llama_parameters(config), count, params=PARAMS)
    loaded = llmpy.load(tmp_path)
    assert loaded.config == config
    if count > 1:
        assert not any(matrix.mapped for matrix in loaded.stored.matrices())
    check_same(loaded)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.float16, "F16"), (ml_dtypes.bfloat16, "BF16"), (np.float64, "F32")], ids=str
)
def test_tensors_of_pytorch_of_every_type(dtype, kind, tmp_path):
    config = replace(LLAMA, tied=False, context=2048)
    arrays = {name: array.astype(dtype) for name, array in named(config, llama_parameters(config)).items()}
    storage = {"F16": "Half", "BF16": "BFloat16", "F32": "Double"}[kind]
    tensors = {name: tensor(arrays[name], str(i), kind=f"torch.{storage}Storage") for i, name in enumerate(arrays)}
    save(tmp_path / "consolidated.00.pth", tensors, list(arrays.values()))
    (tmp_path / "params.json").write_text(str(PARAMS).replace("'", '"'))
    loaded = llmpy.load(tmp_path)
    assert {found for found, _ in kinds_and_mapped(loaded)} == {kind}
    check_same(loaded)


# ---- memory --------------------------------------------------------------------------------------------------------


def resident() -> int:
    with open("/proc/self/statm") as numbers:
        return int(numbers.read().split()[1]) * 4096


@pytest.fixture
def large(tmp_path):
    """A model of a gigabyte, all zeros, which take no room on the disk."""
    path = tmp_path / "m.bin"
    with open(path, "wb") as file:
        file.write(llama2c._header_bytes(llama2c.Header(1, LARGE)))
        file.truncate(llama2c._length(llama2c.Header(1, LARGE)))
    return path


def test_opening_takes_next_to_no_memory(large, monkeypatch):
    llmpy.load  # noqa: B018  what is imported is not what the model takes
    monkeypatch.setattr(MemoryPlan, "take", lambda *_: pytest.fail("taken"))
    before = resident()
    loaded = llmpy.load(large)
    assert large.stat().st_size > 10**9
    assert loaded.stored.nbytes > 10**9
    assert resident() - before < 32e6
    loaded.stored.layers[3].up.rows(np.array([5, 900]))
    assert resident() - before < 32e6


def test_what_memory_cannot_hold_is_said_before(large, monkeypatch):
    monkeypatch.setattr(tensor_map, "physical_memory", lambda: 500_000_000)
    with pytest.raises(UserError, match=r"m\.bin: every token reads its 1\.1 GB of weights, and this machine has 0\.5"):
        llmpy.load(large)
    monkeypatch.setattr(tensor_map, "physical_memory", lambda: None)
    assert llmpy.load(large).config == LARGE


def test_parameters_are_read_when_they_are_asked_for(tmp_path, monkeypatch):
    llama2c.write_model(tmp_path / "m.bin", LLAMA, llama_parameters(LLAMA))
    taken = []
    take = MemoryPlan.take
    monkeypatch.setattr(MemoryPlan, "take", lambda *args: taken.append(1) or take(*args))
    loaded = llmpy.load(tmp_path / "m.bin")
    assert not taken
    assert loaded.parameters is loaded.parameters
    assert len(taken) == 1


# ---- damage --------------------------------------------------------------------------------------------------------


def check_damage(read, path, header, small_memory):
    good = path.read_bytes()
    small_memory(path)

    @settings(max_examples=100)
    @given(damaged(good, header))
    def check(data):
        read_or_refuse(read, path, data)

    check()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_damage_to_a_model_of_llama2c_is_refused_or_is_a_model(version, tmp_path, small_memory):
    llama2c.write_model(tmp_path / "m.bin", LLAMA, llama_parameters(LLAMA), version)
    check_damage(llama2c.read_stored, tmp_path / "m.bin", 44, small_memory)


@pytest.mark.parametrize("kind", ["F32", "Q4_K"])
def test_damage_to_a_gguf_is_refused_or_is_a_model(kind, tmp_path, small_memory):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import QUANTS, write_llama

    config = replace(LLAMA, channels=256, hidden=256)
    path = write_llama(tmp_path / "m.gguf", config, llama_parameters(config), QUANTS[kind], layers=2)
    check_damage(gguf_llama.read_stored, path, 2500, small_memory)


def test_damage_to_a_model_of_llmc_is_refused_or_is_a_model(tmp_path, small_memory, model):
    llmc.write_model(tmp_path / "m.bin", CONFIG, model.parameters)
    check_damage(llmc.read_stored, tmp_path / "m.bin", 40, small_memory)


def test_damage_to_a_checkpoint_of_llama2c_is_refused_or_is_a_model(tmp_path, small_memory):
    write_checkpoint(tmp_path / "ckpt.pt", LLAMA, llama_parameters(LLAMA))
    check_damage(lambda path: meta_llama.open_checkpoint(path).stored(), tmp_path / "ckpt.pt", 4000, small_memory)
