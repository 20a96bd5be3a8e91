"""Meta's folders and llama2.c's ckpt.pt: the same model however it was split, and nothing that does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from llmpy.errors import UserError
from llmpy.formats.pytorch import meta_llama
from llmpy.formats.tensor_map import parts
from llmpy.models.config import RopeScaling
from tests.formats.damage import check_one_line, damaged, read_or_refuse
from tests.formats.test_pytorch_checkpoint import save, tensor
from tests.model_files import LLAMA, llama_parameters

UNTIED = replace(LLAMA, vocab_size=40, tied=False, context=2048)
PARAMS = {"dim": 36, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": -1, "norm_eps": 1e-5, "multiple_of": 4}
ROWS = ("wq", "wk", "wv", "w1", "w3", "output")  # what Meta splits along the rows; wo and w2 along the columns


def named(config, parameters) -> dict[str, np.ndarray]:
    return {part.renamed(meta_llama.NAMES): np.ascontiguousarray(part.of(parameters)) for part in parts(config)}


def write_tensors(path, arrays, whole=lambda model: model, behind=()):
    """`whole` makes of the tensors what is saved; `behind` lies behind them in the file."""
    stored = [np.ascontiguousarray(array) for array in (*arrays.values(), *behind)]
    content = {name: tensor(stored[i], key=str(i)) for i, name in enumerate(arrays)}
    return save(path, whole(content), stored)


def write_checkpoint(path, config, parameters, prefix="_orig_mod.", **arguments):
    """As llama2.c's train.py: the head is there even where it is the embedding."""
    path.parent.mkdir(exist_ok=True)
    arrays = {prefix + name: array for name, array in named(config, parameters).items()}
    sizes = {"dim": config.channels, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads}
    sizes |= {"vocab_size": config.vocab_size, "multiple_of": 4, "max_seq_len": config.context, "dropout": 0.0}

    def whole(model):
        if config.tied:
            model = model | {f"{prefix}output.weight": model[f"{prefix}tok_embeddings.weight"]}
        moment, loss = (tensor(array, key=str(len(arrays) + i)) for i, array in enumerate(behind))
        state = {"state": {0: {"exp_avg": moment}}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}
        rest = {"iter_num": 300, "best_val_loss": loss, "config": {"out_dir": "out"}}
        return {"model": model, "optimizer": state, "model_args": sizes | arguments, **rest}

    behind = [np.zeros(3, np.float32), np.array(1.25, np.float32)]
    return write_tensors(path, arrays, whole, behind)


def write_folder(folder, config, parameters, count, embedding_axis=1, params=PARAMS, **extra):
    """As Meta splits a model over `count` machines; `extra` goes into the first file."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        shard = {}
        for name, array in named(config, parameters).items():
            kind = name.split(".")[-2]
            axis = (
                0
                if kind in ROWS
                else 1
                if kind in ("wo", "w2")
                else embedding_axis
                if kind == "tok_embeddings"
                else None
            )
            shard[name] = array if axis is None else np.split(array, count, axis)[i]
        shard["rope.freqs"] = np.ones(3, np.float32)
        write_tensors(folder / f"consolidated.{i:02}.pth", shard | (extra if i == 0 else {}))
    (folder / "params.json").write_text(json.dumps(params))


def test_a_checkpoint_of_llama2c(tmp_path):
    for config in (LLAMA, replace(LLAMA, tied=False)):
        parameters = llama_parameters(config)
        for prefix in ("", "_orig_mod."):
            found, loaded = meta_llama.open_checkpoint(
                write_checkpoint(tmp_path / "ckpt.pt", config, parameters, prefix)
            ).read()
            assert found == config
            np.testing.assert_array_equal(loaded.flat, parameters.flat)


def test_a_checkpoint_that_pytorch_wrote(tmp_path):
    torch = pytest.importorskip("torch")
    parameters = llama_parameters()
    model = {name: torch.from_numpy(array) for name, array in named(LLAMA, parameters).items()}
    model["output.weight"] = model["tok_embeddings.weight"]
    arguments = {"dim": 36, "n_layers": 3, "n_heads": 6, "n_kv_heads": 2, "vocab_size": 37, "max_seq_len": 9}
    torch.save({"model": model, "model_args": arguments, "best_val_loss": torch.tensor(1.0)}, tmp_path / "ckpt.pt")
    found, loaded = meta_llama.open_checkpoint(tmp_path / "ckpt.pt").read()
    assert found == LLAMA
    np.testing.assert_array_equal(loaded.flat, parameters.flat)


@pytest.mark.parametrize(("count", "axis"), [(1, 1), (2, 1)])
def test_a_folder_of_meta(count, axis, tmp_path):
    parameters = llama_parameters(UNTIED)
    write_folder(tmp_path, UNTIED, parameters, count, axis)
    found, loaded = meta_llama.open_folder(tmp_path).read()
    assert found == UNTIED
    np.testing.assert_array_equal(loaded.flat, parameters.flat)


def test_llama_3_splits_its_embedding_by_rows_and_scales_its_rotations(tmp_path):
    config = replace(UNTIED, rope_theta=500000.0, rope_scaling=RopeScaling())
    parameters = llama_parameters(config)
    params = PARAMS | {"rope_theta": 500000.0, "use_scaled_rope": True, "vocab_size": 40, "ffn_dim_multiplier": 1.3}
    write_folder(tmp_path, config, parameters, 2, 0, params)
    found, loaded = meta_llama.open_folder(tmp_path).read()
    assert found == config
    np.testing.assert_array_equal(loaded.flat, parameters.flat)
    (tmp_path / "params.json").write_text(json.dumps(params | {"rope_scaling_factor": 32.0}))
    assert meta_llama.open_folder(tmp_path).config.rope_scaling == RopeScaling(32.0)


@pytest.mark.parametrize(
    ("params", "why"),
    [
        ({"n_layers": 4}, r"lack layers\.3"),
        ({"n_layers": 2}, r"holds layers\.2"),
        ({"n_layers": None}, "layers must be"),
        ({"n_heads": 5}, "not a multiple"),
        ({"n_kv_heads": 3}, "wk.*has shape"),
        ({"dim": 72}, "has shape"),
        ({"dim": "36"}, "channels"),
        ({"norm_eps": "small"}, "norm_eps"),
        ({"use_scaled_rope": True, "rope_scaling_factor": -1.0}, "factor must be"),
    ],
)
def test_params_that_do_not_fit_the_weights(params, why, tmp_path):
    write_folder(tmp_path, UNTIED, llama_parameters(UNTIED), 2)
    (tmp_path / "params.json").write_text(json.dumps(PARAMS | params))
    with pytest.raises(UserError, match=why) as caught:
        meta_llama.open_folder(tmp_path)
    check_one_line(str(caught.value))


def test_a_file_that_is_missing_or_another(tmp_path):
    write_folder(tmp_path, UNTIED, llama_parameters(UNTIED), 4)
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(UserError, match="one is missing"):
        meta_llama.open_folder(tmp_path)
    x = np.ones((2, 2), np.float32)
    for content, why in (
        (5, "no checkpoint of llama2.c"),
        ({"model": {}}, "no model_args"),
        ({"model": {}, "model_args": {}}, "no tok_embeddings"),
        ({"model": {"tok_embeddings.weight": tensor(x)}, "model_args": {}}, "w1"),
    ):
        with pytest.raises(UserError, match=why):
            meta_llama.open_checkpoint(save(tmp_path / "ckpt.pt", content, [x]))
    write_folder(tmp_path, UNTIED, llama_parameters(UNTIED), 1, **{"layers.0.attention.wq.bias": x})
    for path in tmp_path.glob("consolidated.0[1-9].pth"):
        path.unlink()
    with pytest.raises(UserError, match=r"holds layers\.0\.attention\.wq\.bias"):
        meta_llama.open_folder(tmp_path)


def test_damage_is_refused_or_is_a_model(tmp_path, small_memory):
    path = write_checkpoint(tmp_path / "ckpt.pt", LLAMA, llama_parameters())
    good = path.read_bytes()
    small_memory(path)

    @settings(max_examples=100)
    @given(damaged(good, good.index(b"archive/data/0")))
    def check(data):
        read_or_refuse(lambda path: meta_llama.open_checkpoint(path).read(), path, data)

    check()
