"""Training a Llama: what is different from a GPT-2. The rest is in test_trainer.py."""

from dataclasses import replace

import numpy as np
import pytest

from llmpy import Engine, Trainer, UserError
from llmpy.formats import llama2c
from llmpy.formats.load import load_model
from llmpy.models.llama import Llama, LlamaConfig
from llmpy.models.presets import is_descriptor
from llmpy.training.metrics import flops_per_token
from tests.kernels.numerics import relative_error
from tests.tiny_runs import VOCABULARY, losses, tiny, trained


def llama(data, **changes):
    shape = {"layers": None, "heads": None, "channels": None, "model": "llama:260K"}
    return tiny(data, **(shape | {"lr": 3e-3} | changes))


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_run_by_a_descriptor_learns_and_generates(data, out, device):
    trainer = trained(llama(data, steps=30, device=device, precision="float32"), out)
    assert trainer.model.config == LlamaConfig(
        VOCABULARY, 12, layers=5, heads=8, kv_heads=4, channels=64, hidden=172, rope_interleaved=False
    )
    assert trainer.val_loss < 3.5
    loaded = load_model(out)
    assert loaded.config == trainer.model.config
    np.testing.assert_array_equal(loaded.parameters.flat, trainer.model.parameters.flat)
    text = "".join(Engine(loaded, device).stream("The quick", 20, temperature=0))
    assert text == "".join(Engine(trainer.model, device, loaded.tokenizer).stream("The quick", 20, temperature=0))
    assert text


@pytest.mark.parametrize(("device", "precision"), [("reference", "float32"), ("cpu", "bfloat16")])
def test_a_run_with_dropout_goes_on_to_the_bit(data, tmp_path, device, precision):
    config = llama(data, dropout=0.2, total_batch_tokens=48, device=device, precision=precision)
    whole = trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_after=6)
    again = Trainer.resume(tmp_path / "parts", quiet=True)
    again.train()
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    np.testing.assert_array_equal(again.model.parameters.flat, whole.model.parameters.flat)
    assert losses(tmp_path / "whole") != losses(trained(replace(config, dropout=0.0), tmp_path / "without").out)


def test_transformers_opens_a_checkpoint_as_it_is(data, out):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    trainer = trained(llama(data), out)
    theirs = transformers.LlamaForCausalLM.from_pretrained(out / "step_00000010", dtype=torch.float64)
    x, _ = trainer.train_data.next_batch()
    expected = theirs(torch.from_numpy(x).long()).logits.detach().numpy()
    assert relative_error(trainer.model.logits(x), expected) < 1e-5


def test_a_model_in_the_other_order_of_rotation_is_taken_over(data, tmp_path):
    """As llama2.c's files have it, where neighbours are rotated together."""
    config = LlamaConfig(VOCABULARY, 16, layers=2, heads=4, kv_heads=2, channels=32)
    initial = Llama(config, "reference", 2, 12).initialize()
    llama2c.write_model(tmp_path / "model.bin", config, initial.parameters)
    trainer = Trainer(llama(data, model=str(tmp_path / "model.bin")), quiet=True)
    assert trainer.model.config == replace(config, rope_interleaved=False)
    x, y = trainer.train_data.next_batch()
    assert trainer.model.loss(x, y) == pytest.approx(initial.loss(x, y), rel=1e-6)
    assert not np.array_equal(trainer.model.parameters.qkvw, initial.parameters.qkvw)


def test_a_misspelt_size_is_said_before_anything_is_read(tmp_path):
    assert is_descriptor("llama:15M")
    assert not is_descriptor("meta-llama/Llama-3.2-1B")
    with pytest.raises(UserError, match=r"no model is named 'llama:16M': use .*llama:\{260K,15M"):
        Trainer(llama(tmp_path / "nothing", model="llama:16M"), quiet=True)


def test_attention_costs_by_its_own_width():
    config = LlamaConfig(97, 64, layers=2, heads=4, channels=32, head_size=16)
    assert flops_per_token(config, 64) - flops_per_token(config, 32) == 6 * 2 * 4 * 16 * 32
