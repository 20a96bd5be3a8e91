"""Folders of transformers: what it writes we read, what we write it reads, and what is damaged is refused."""

import json
import shutil
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings

from llmpy.errors import UserError
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.safetensors import SafetensorsFile, TensorToWrite, write
from llmpy.models.gpt2 import GPT2Config
from tests.formats.damage import check_one_line, damaged, read_or_refuse
from tests.model_files import CONFIG, make_model

TOKENS = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (2, CONFIG.context)).astype(np.int32)


@pytest.fixture
def folder(tmp_path, model):
    huggingface.write_model(tmp_path / "model", CONFIG, model.parameters)
    return tmp_path / "model"


def tensors_of(folder):
    file = SafetensorsFile(folder / "model.safetensors")
    return {name: file.tensor(name).copy() for name in file.entries}


def rewrite(folder, tensors, name="model.safetensors"):
    with open(folder / name, "wb") as file:
        write(file, [TensorToWrite.of(name, tensor) for name, tensor in tensors.items()])


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# ---- round trips ---------------------------------------------------------------------------------------------------


def test_a_model_comes_back(folder, model):
    config, parameters = huggingface.read_model(folder)
    assert config == CONFIG
    np.testing.assert_array_equal(parameters.flat, model.parameters.flat)


def test_weights_are_read_into_a_model_that_exists(folder, model):
    other = make_model().initialize(3)
    huggingface.read_parameters(folder, CONFIG, other.parameters)
    np.testing.assert_array_equal(other.parameters.flat, model.parameters.flat)


def test_bfloat16_is_rounded_once_and_widened(tmp_path, model):
    huggingface.write_model(tmp_path, CONFIG, model.parameters, "bfloat16")
    _, parameters = huggingface.read_model(tmp_path)
    rounded = model.parameters.flat.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(parameters.flat, rounded)


def test_the_names_and_shapes_are_those_of_transformers(folder):
    tensors = tensors_of(folder)
    C = CONFIG.channels
    assert len(tensors) == 2 + 12 * CONFIG.layers + 2
    assert tensors["transformer.wte.weight"].shape == (CONFIG.vocab_size, C)
    assert tensors["transformer.h.1.attn.c_attn.weight"].shape == (C, 3 * C)
    assert tensors["transformer.h.0.mlp.c_proj.weight"].shape == (4 * C, C)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_old_files_without_prefix_with_masks_in_half_precision(dtype, folder):
    """As the hub's "gpt2": GPT2Model's names, and the causal mask among the tensors."""
    tensors = {name.removeprefix("transformer."): tensor.astype(dtype) for name, tensor in tensors_of(folder).items()}
    masks = {"h.0.attn.bias": np.ones((1, 1, 9, 9), np.uint8), "h.1.attn.masked_bias": np.array(-1e4, np.float32)}
    rewrite(folder, tensors | masks)
    _, parameters = huggingface.read_model(folder)
    np.testing.assert_array_equal(parameters.qkvw[1].T, tensors["h.1.attn.c_attn.weight"].astype(np.float32))
    assert not parameters.wte[CONFIG.vocab_size :].any()


def shard(folder):
    tensors = list(tensors_of(folder).items())
    parts = {"model-00001-of-00002.safetensors": tensors[:9], "model-00002-of-00002.safetensors": tensors[9:]}
    for name, part in parts.items():
        rewrite(folder, dict(part), name)
    index = {"weight_map": {tensor: name for name, part in parts.items() for tensor, _ in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    return index


def test_a_model_in_shards(folder, model):
    shard(folder)
    _, parameters = huggingface.read_model(folder)
    np.testing.assert_array_equal(parameters.flat, model.parameters.flat)


def test_a_head_of_its_own_that_has_the_values_of_the_embedding(folder):
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {"lm_head.weight": tensors["transformer.wte.weight"]})
    set_config(folder, tie_word_embeddings=False)
    config, parameters = huggingface.read_model(folder)
    assert config == replace(CONFIG, tied=False)
    np.testing.assert_array_equal(parameters.lm_headw, parameters.wte[: CONFIG.vocab_size])


# ---- against transformers ------------------------------------------------------------------------------------------


def test_transformers_reads_what_we_write(folder, model):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs, loading = transformers.GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert theirs.dtype == torch.float32
    with torch.no_grad():
        expected = theirs.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(model.logits(TOKENS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3kB"}])
def test_we_read_what_transformers_writes(options, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=61, n_positions=9, n_layer=2, n_head=3, n_embd=12, bos_token_id=0, eos_token_id=0
        )
    ).eval()
    theirs.save_pretrained(tmp_path, **options)
    ours = make_model()
    config, parameters = huggingface.read_model(tmp_path)
    assert config == CONFIG
    ours.parameters.flat[:] = parameters.flat
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(ours.logits(TOKENS), expected, rtol=1e-4, atol=1e-5)


def test_transformers_reads_the_tokenizer_beside(tmp_path):
    transformers = pytest.importorskip("transformers")
    from llmpy.tokenization.base import Tokenizer

    ours = Tokenizer.from_spec("bpe:300", ["one fish two fish red fish blue fish " * 20])
    config = GPT2Config(ours.vocab_size, 8, 1, 1, 4)
    huggingface.write_model(tmp_path, config, make_model(config).parameters, end_of_text=ours.end_of_text)
    ours.save(tmp_path / "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = " one fish, naïve fish\n\n  and 3 more"
    assert theirs.encode(text) == ours.encode(text).tolist()
    assert theirs.eos_token_id == ours.end_of_text


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gemma"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("n_inner", 7),
        ("tie_word_embeddings", False),
        ("n_embd", 0),
        ("n_embd", 10**12),
        ("n_embd", "12"),
        ("n_head", 5),
        ("n_layer", True),
        ("n_layer", 3),
        ("vocab_size", None),
    ],
)
def test_a_config_that_cannot_be_run_names_the_field_or_the_tensor(field, value, folder):
    set_config(folder, **{field: value})
    lacking = {"n_layer": "lack transformer.h.2", "tie_word_embeddings": "lack lm_head.weight"}
    with pytest.raises(UserError, match=lacking.get(field, field) if value in (3, False) else field):
        huggingface.read_model(folder)


def test_fewer_layers_than_the_weights_have_is_another_model(folder):
    set_config(folder, n_layer=1)
    with pytest.raises(UserError, match=r"holds transformer\.h\.1"):
        huggingface.read_model(folder)


@pytest.mark.parametrize("field", ["vocab_size", "n_positions", "n_embd"])
def test_a_shape_that_does_not_fit_is_named(field, folder):
    set_config(folder, **{field: 24, "n_inner": None})
    with pytest.raises(UserError, match=r"transformer\.w.e\.weight has shape"):
        huggingface.read_model(folder)


def test_a_missing_tensor_is_named(folder):
    tensors = tensors_of(folder)
    del tensors["transformer.h.1.ln_2.bias"]
    rewrite(folder, tensors)
    with pytest.raises(UserError, match=r"lack transformer\.h\.1\.ln_2\.bias"):
        huggingface.read_model(folder)


def test_whole_numbers_are_no_weights(folder):
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {"transformer.ln_f.bias": np.zeros(CONFIG.channels, np.int32)})
    with pytest.raises(UserError, match="type I32"):
        huggingface.read_model(folder)


def test_a_pickle_is_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        huggingface.read_model(folder)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(UserError, match=missing):
        huggingface.read_model(folder)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\xff", "[" * 100_000])
def test_a_config_that_is_no_json_object(text, folder):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="damaged"):
        huggingface.read_model(folder)


def test_an_index_must_not_lead_out_of_the_folder_nor_to_what_is_not_there(folder, tmp_path):
    index = shard(folder)
    path = folder / "model.safetensors.index.json"
    name = "transformer.wte.weight"
    for shard_name in ("../secret.safetensors", "/etc/passwd", 3, "missing.safetensors"):
        path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: shard_name}}))
        with pytest.raises(UserError, match=r"secret|passwd|3|missing"):
            huggingface.read_model(folder)
    path.write_text(json.dumps({"weight_map": index["weight_map"] | {name: "model-00002-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"lacks transformer\.wte\.weight"):
        huggingface.read_model(folder)
    path.write_text("{}")
    with pytest.raises(UserError, match="no weight_map"):
        huggingface.read_model(folder)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder of its own for the tests of damage, and the bytes of its files."""
    folder = tmp_path_factory.mktemp("good")
    huggingface.write_model(folder, CONFIG, make_model().parameters)
    return folder


def test_damaged_weights_are_refused_or_are_weights(good, tmp_path, small_memory):
    data = (good / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    shutil.copy(good / "config.json", tmp_path)
    small_memory(good / "model.safetensors")

    @settings(max_examples=150)
    @given(damaged(data, int.from_bytes(data[:8], "little")))
    def check(mutated):
        loaded = read_or_refuse(lambda _: huggingface.read_model(tmp_path), path, mutated)
        assert loaded is None or loaded[0] == CONFIG

    check()


def test_a_damaged_config_is_refused_or_fits_the_weights(good, tmp_path, small_memory):
    data = (good / "config.json").read_bytes()
    shutil.copy(good / "model.safetensors", tmp_path)
    small_memory(good / "model.safetensors")

    @settings(max_examples=150)
    @given(damaged(data, len(data)))
    def check(mutated):
        loaded = read_or_refuse(lambda _: huggingface.read_model(tmp_path), tmp_path / "config.json", mutated)
        assert loaded is None or loaded[0].channels == CONFIG.channels

    check()


def test_a_full_disk_leaves_the_old_model(folder, model, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface, "write", full)
    with pytest.raises(UserError, match="No space left") as caught:
        huggingface.write_model(folder, CONFIG, model.parameters)
    check_one_line(str(caught.value))
    assert (folder / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_gpt2s_own_vocabulary_says_where_a_text_ends():
    config = GPT2Config(layers=1, heads=1, channels=1, context=1)
    assert huggingface.config_fields(config)["eos_token_id"] == 50256
    assert huggingface.config_fields(CONFIG)["eos_token_id"] is None
