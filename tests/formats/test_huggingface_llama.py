"""Folders of Llama, Mistral and Qwen 2: what transformers writes we read, what we write it reads."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from llmpy.errors import UserError
from llmpy.formats import llama2c
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface.safetensors import SafetensorsFile
from llmpy.formats.tensor_map import take_parameters
from llmpy.models.config import RopeScaling
from tests.formats.damage import check_one_line, damaged, read_or_refuse
from tests.formats.test_huggingface import rewrite, set_config, tensors_of
from tests.model_files import LLAMA, llama_parameters

TOKENS = np.random.default_rng(0).integers(0, LLAMA.vocab_size, (2, LLAMA.context)).astype(np.int32)
HALVES = replace(LLAMA, rope_interleaved=False)
SCALING = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=16)
KINDS = {
    "llama 2": HALVES,
    "llama2.c": LLAMA,
    "a head of its own": replace(HALVES, tied=False, norm_eps=1e-6),
    "llama 3.1": replace(HALVES, rope_theta=500.0, rope_scaling=SCALING),
    "qwen 2": replace(HALVES, qkv_bias=True, kv_heads=6),
    "qwen 2, neighbours": replace(LLAMA, qkv_bias=True),
    "head size": replace(HALVES, head_size=10, kv_heads=1),
}
kinds = pytest.mark.parametrize("config", KINDS.values(), ids=KINDS)


@kinds
def test_a_model_comes_back_bit_for_bit(config, tmp_path):
    parameters = llama_parameters(config)
    huggingface.write_model(tmp_path, config, parameters)
    found, loaded = huggingface.read_model(tmp_path)
    assert found == config
    np.testing.assert_array_equal(loaded.flat, parameters.flat)
    other = take_parameters(config)
    huggingface.read_parameters(tmp_path, config, other)
    np.testing.assert_array_equal(other.flat, parameters.flat)


def test_the_names_and_shapes_are_those_of_transformers(tmp_path):
    huggingface.write_model(
        tmp_path, replace(LLAMA, tied=False, qkv_bias=True), llama_parameters(replace(LLAMA, tied=False, qkv_bias=True))
    )
    tensors = tensors_of(tmp_path)
    assert len(tensors) == 3 + 12 * LLAMA.layers
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (12, 36)
    assert tensors["model.layers.0.self_attn.q_proj.bias"].shape == (36,)
    assert tensors["model.layers.1.mlp.down_proj.weight"].shape == (36, 20)
    assert tensors["lm_head.weight"].shape == (37, 36)


@kinds
def test_transformers_reads_what_we_write(config, tmp_path):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.formats import torch_llama

    parameters = llama_parameters(config)
    huggingface.write_model(tmp_path, config, parameters)
    assert_same_logits(transformers, tmp_path, torch_llama.forward(parameters.views, config, TOKENS))


def assert_same_logits(transformers, folder, expected):
    import torch

    theirs, loading = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    with torch.no_grad():
        logits = theirs.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


COMMON = {
    "vocab_size": 37,
    "max_position_embeddings": 9,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_size": 36,
    "intermediate_size": 20,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "3kB"}])
@pytest.mark.parametrize(
    ("family", "fields", "expected"),
    [
        ("Llama", {}, replace(HALVES, tied=False, norm_eps=1e-6)),
        ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}, HALVES),
        (
            "Llama",
            {"rope_parameters": ROPE},
            replace(HALVES, tied=False, norm_eps=1e-6, rope_theta=500.0, rope_scaling=SCALING),
        ),
        ("Llama", {"head_dim": 10}, replace(HALVES, tied=False, norm_eps=1e-6, head_size=10)),
        ("Mistral", {"sliding_window": None}, replace(HALVES, tied=False, norm_eps=1e-6)),
        ("Mistral", {"sliding_window": 5}, replace(HALVES, tied=False, norm_eps=1e-6, context=5)),
        ("Qwen2", {}, replace(HALVES, tied=False, norm_eps=1e-6, qkv_bias=True)),
    ],
)
def test_we_read_what_transformers_writes(family, fields, expected, options, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tests.formats import torch_llama

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**COMMON, **fields)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for tensor in theirs.parameters():
        torch.nn.init.normal_(tensor, 0.1, 0.3)
    theirs.save_pretrained(tmp_path, **options)
    found, parameters = huggingface.read_model(tmp_path)
    assert found == expected
    tokens = TOKENS[:, : found.context]
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens).long()).logits.numpy()
    np.testing.assert_allclose(torch_llama.forward(parameters.views, found, tokens), logits, rtol=1e-4, atol=1e-4)


def test_from_llama2c_to_transformers_and_back(shared_data, tmp_path):
    """The real model: the rotation of neighbours becomes one of halves, and its loss on its own kind of text stays."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from llmpy.tokenization.base import Tokenizer

    config, parameters = llama2c.read_model(shared_data / "llama2c" / "stories260K.bin")
    huggingface.write_model(tmp_path, config, parameters)
    tokenizer = Tokenizer.load(shared_data / "llama2c" / "tok512.bin")
    text = (shared_data / "tinystories" / "sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")[0].strip()
    ids = torch.tensor([[1, *tokenizer.encode(text).tolist()]])[:, :400]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        loss = theirs(ids, labels=ids).loss.item()
    assert loss < 1.5  # 1.297 is its validation loss; unrotated or wrongly paired it is above 3
    found, loaded = huggingface.read_model(tmp_path)
    llama2c.write_model(tmp_path / "back.bin", found, loaded)
    again = llama2c.read_model(tmp_path / "back.bin")[1]
    np.testing.assert_array_equal(again.flat, parameters.flat)


def test_large_weights_are_written_in_shards(tmp_path):
    parameters = llama_parameters(HALVES)
    huggingface.write_model(tmp_path, HALVES, parameters, shard_bytes=12_000)
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert len(shards) > 2
    for name in shards:
        assert SafetensorsFile(tmp_path / name).size < 14_000
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * parameters.flat.size
    np.testing.assert_array_equal(huggingface.read_model(tmp_path)[1].flat, parameters.flat)
    transformers = pytest.importorskip("transformers")
    from tests.formats import torch_llama

    assert_same_logits(transformers, tmp_path, torch_llama.forward(parameters.views, HALVES, TOKENS))


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    huggingface.write_model(tmp_path, HALVES, llama_parameters(HALVES))
    return tmp_path


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("model_type", "gemma", "only gpt2, llama, mistral, qwen2 can be run"),
        ("model_type", "qwen2", r"lack model\.layers\.0\.self_attn\.q_proj\.bias"),
        ("hidden_act", "gelu", "hidden_act"),
        ("attention_bias", True, "attention_bias"),
        ("mlp_bias", True, "mlp_bias"),
        ("quantization_config", {"bits": 4}, "quantization_config"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}, 'type "yarn", and only llama3'),
        ("rope_scaling", {"rope_type": "llama3", "factor": 2.0}, "lacks low_freq_factor"),
        ("rope_scaling", ROPE | {"factor": "8"}, "factor must be a number"),
        ("rope_scaling", ROPE | {"high_freq_factor": 1.0}, "high_freq_factor"),
        ("rope_scaling", [8], "no table"),
        ("rope_theta", "big", "rope_theta"),
        ("rms_norm_eps", -1, "norm_eps"),
        ("hidden_size", 10**12, "channels"),
        ("hidden_size", 35, "has shape"),
        ("num_key_value_heads", 4, "heads 6 is not a multiple of kv_heads 4"),
        ("num_key_value_heads", 0, "kv_heads"),
        ("num_hidden_layers", True, "layers"),
        ("num_hidden_layers", 4, r"lack model\.layers\.3"),
        ("num_hidden_layers", 2, r"holds model\.layers\.2"),
        ("head_dim", 4, "has shape"),
        ("tie_word_embeddings", False, r"lack lm_head\.weight"),
        ("vocab_size", "37", "vocab_size"),
    ],
)
def test_a_config_that_cannot_be_run_names_what_is_wrong(field, value, why, folder):
    set_config(folder, **{field: value})
    with pytest.raises(UserError, match=why) as caught:
        huggingface.read_model(folder)
    check_one_line(str(caught.value))


def test_constants_are_no_obstacle_and_unknown_weights_are(folder):
    tensors = tensors_of(folder)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    rewrite(folder, tensors | {name: np.ones(3, np.float32), "lm_head.weight": tensors["model.embed_tokens.weight"]})
    huggingface.read_model(folder)
    rewrite(folder, tensors | {"model.layers.0.self_attn.q_norm.weight": np.ones(6, np.float32)})
    with pytest.raises(UserError, match="q_norm"):
        huggingface.read_model(folder)


def test_a_damaged_config_is_refused_or_fits_the_weights(folder, small_memory):
    data = (folder / "config.json").read_bytes()
    small_memory(folder / "model.safetensors")

    @settings(max_examples=150)
    @given(damaged(data, len(data)))
    def check(mutated):
        loaded = read_or_refuse(lambda _: huggingface.read_model(folder), folder / "config.json", mutated)
        assert loaded is None or loaded[0].channels == LLAMA.channels

    check()
