"""What is said of the files of Llamas: sizes, types, tensors, and whether they can be run."""

import numpy as np
import pytest
from hypothesis import given, settings

from llmpy.formats import llama2c
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.tensor_map import parts
from llmpy.tools.describe import describe
from tests.formats.damage import damaged, read_or_refuse
from tests.formats.test_meta_llama import write_checkpoint, write_folder
from tests.formats.test_pytorch_checkpoint import save, tensor
from tests.model_files import LLAMA, llama_parameters
from tests.tools.test_describe import assert_has

SIZES = {"layers": 3, "heads": 6, "kv_heads": 2, "channels": 36, "hidden": 20, "context": 9, "vocab_size": 37}
COUNT = 2 + 9 * 3


def test_a_hugging_face_folder(tmp_path):
    huggingface.write_model(tmp_path, LLAMA, llama_parameters())
    found = describe(tmp_path)
    assert (found.problems, len(found.tensors)) == ([], COUNT)
    assert_has(found.facts, parameters=llama_parameters().flat.size, head="the embedding", head_size=6, **SIZES)


def test_an_8_bit_file_of_llama2c(tmp_path):
    llama2c.write_model(tmp_path / "m.bin", LLAMA, llama_parameters(), 2)
    found = describe(tmp_path / "m.bin")
    assert_has(found.facts, version=2, dtype="8 bits", group_size=4, **SIZES)
    assert {tensor["dtype"] for tensor in found.tensors} == {"Q8_0", "float32"}
    wte = next(tensor for tensor in found.tensors if "embed" in tensor["name"])
    assert wte["mean"] == pytest.approx(llama_parameters().wte.mean(), abs=1e-3)


def test_a_gguf(tmp_path):
    pytest.importorskip("gguf")
    from tests.formats.gguf_files import QUANTS, write_llama

    parameters = llama_parameters()
    parameters.qkvw[1, 0, 0] = np.nan
    template = {"tokenizer.chat_template": "{{ messages }}"}
    found = describe(write_llama(tmp_path / "m.gguf", LLAMA, parameters, QUANTS.F16, template))
    assert_has(found.facts, architecture="llama", chat_template="14 characters", tokenizer="none beside it", **SIZES)
    assert found.facts["types"] == ["22 F16", "7 F32"]
    assert found.problems == ["1 of the 1296 numbers of blk.1.attn_q.weight are infinite or not a number"]
    assert len(found.tensors) == COUNT
    found = describe(write_llama(tmp_path / "o.gguf", LLAMA, parameters, metadata={"expert_count": 8}))
    assert "mixture of experts" in found.facts["cannot_be_run"]
    assert len(found.tensors) == COUNT


def test_a_checkpoint_and_any_other_file_of_pytorch(tmp_path):
    found = describe(write_checkpoint(tmp_path / "ckpt.pt", LLAMA, llama_parameters()))
    assert found.kind == "PyTorch checkpoint"
    assert_has(found.facts, iter_num=300.0, best_val_loss=1.25, **SIZES)
    assert len(found.tensors) == COUNT + 3  # the head, which is the embedding; the loss; a moment of the optimizer
    x = np.ones((2, 3), np.float32)
    found = describe(save(tmp_path / "other.pt", {"a": {"b": tensor(x)}}, [x]))
    assert "no model in it" in found.facts["cannot_be_run"]
    assert found.tensors == [
        {"name": "a.b", "dtype": "float32", "shape": [2, 3], "numbers": 6, "mean": 1.0, "std": 0.0}
    ]


def test_a_folder_of_meta(tmp_path):
    write_folder(tmp_path, LLAMA, llama_parameters(), 2)
    found = describe(tmp_path)
    assert (found.kind, found.problems, len(found.tensors)) == ("Llama of Meta", [], len(list(parts(LLAMA))))
    assert_has(found.facts, files=2, **(SIZES | {"context": 2048}))


def test_infinite_scales_are_counted_and_no_warning(tmp_path):
    llama2c.write_model(tmp_path / "m.bin", LLAMA, llama_parameters(), 2)
    file = llama2c.Llama2cFile(tmp_path / "m.bin")
    part = next(part for part in parts(LLAMA) if part.tensor == "wte")
    data = bytearray((tmp_path / "m.bin").read_bytes())
    at = data.index(file.stored(part).scales.tobytes())
    data[at : at + 4] = np.float32(np.inf).tobytes()
    (tmp_path / "m.bin").write_bytes(data)
    [problem] = describe(tmp_path / "m.bin").problems
    assert problem.endswith("of the 1332 numbers of model.embed_tokens.weight are infinite or not a number")


@pytest.mark.parametrize("name", ["v0.bin", "v2.bin", "ckpt.pt", "m.gguf", "tokenizer.bin"])
def test_damage_is_described_or_refused_in_one_line(name, tmp_path, shared_data):
    path = tmp_path / name
    if name.startswith("v"):
        llama2c.write_model(path, LLAMA, llama_parameters(), int(name[1]))
    elif name == "ckpt.pt":
        write_checkpoint(path, LLAMA, llama_parameters())
    elif name == "m.gguf":
        pytest.importorskip("gguf")
        from tests.formats.gguf_files import QUANTS, write_llama

        write_llama(path, LLAMA, llama_parameters(), QUANTS.F16)
    else:
        path.write_bytes((shared_data / "llama2c" / "tok512.bin").read_bytes())
    good = path.read_bytes()

    @settings(max_examples=60)
    @given(damaged(good, 2000))
    def check(data):
        found = read_or_refuse(describe, path, data)
        assert found is None or not any("\n" in problem for problem in found.problems)

    check()
