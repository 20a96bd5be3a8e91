"""Training that stops, by itself or not, goes on to the bit as if it had not."""

import os
import signal

import numpy as np
import pytest

from llmpy import Trainer, UserError
from llmpy.formats.llmc.shards import write_shard
from llmpy.training import checkpoint
from tests.tiny_runs import VOCABULARY, events, files_of, losses, tiny, trained, write_data


@pytest.mark.parametrize("stop_after", [1, 4, 7, 10])
def test_a_resumed_run_is_the_same_to_the_bit(data, tmp_path, stop_after):
    config = tiny(data, sample_every=4, sample_tokens=3, keep=0)
    trained(config, tmp_path / "whole")
    first = Trainer(config, tmp_path / "parts", quiet=True, stop_after=stop_after)
    result = first.train()
    assert (result.step, result.reason) == (stop_after, "finished" if stop_after == 10 else "stop_after")
    resumed = Trainer.resume(tmp_path / "parts", quiet=True)
    assert resumed.step == stop_after
    assert resumed.train().step == 10
    for name in ("main.log", "config.toml", "step_00000010/model.safetensors",
                 "step_00000010/optimizer_rank0.safetensors"):  # fmt: skip
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert events(tmp_path / "whole", "sample") == events(tmp_path / "parts", "sample")


def test_the_compiled_backend_resumes_to_the_bit_at_any_number_of_threads(data, tmp_path):
    config = tiny(data, device="cpu", batch_size=4, sequence_length=33, channels=24, threads=1)
    trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_after=5)
    resumed = Trainer.resume(tmp_path / "parts", {"threads": min(2, os.cpu_count() or 1)}, quiet=True)
    resumed.train()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    name = "step_00000010/model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


@pytest.mark.parametrize("stochastic", [False, True])
def test_a_run_in_bfloat16_resumes_to_the_bit(data, tmp_path, stochastic):
    narrow = {"precision": "bf16", "stochastic_rounding": stochastic}
    config = tiny(data, device="cpu", channels=24, sample_every=4, sample_tokens=3, **narrow)
    whole = trained(config, tmp_path / "whole")
    assert whole.config.precision == "bfloat16"
    trained(config, tmp_path / "parts", stop_after=5)
    resumed = Trainer.resume(tmp_path / "parts", {"precision": "bfloat16"}, quiet=True)
    resumed.train()
    for name in ("main.log", "config.toml", "step_00000010/model.safetensors",
                 "step_00000010/optimizer_rank0.safetensors"):  # fmt: skip
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert events(tmp_path / "whole", "sample") == events(tmp_path / "parts", "sample")
    assert resumed.model.arrays["weights"].tobytes() == whole.model.arrays["weights"].tobytes()
    if stochastic:
        nearest = trained(tiny(data, device="cpu", channels=24, precision="bf16"))
        assert (nearest.model.parameters.flat != whole.model.parameters.flat).any()


def test_a_run_that_goes_on_after_a_skipped_step_rounds_as_one_resumed_there(data, tmp_path):
    config = tiny(data, device="cpu", precision="bf16", stochastic_rounding=True, skip_loss_z=5)
    trainer = Trainer(config, tmp_path / "run", quiet=True, stop_after=3)
    trainer.train()
    trainer.stop_after, trainer.loss_outliers.update = 4, lambda loss: 100.0
    trainer.train()
    assert events(tmp_path / "run")[-1]["skipped"]
    resumed = Trainer.resume(tmp_path / "run", quiet=True)
    assert resumed.step == 4
    assert resumed.model.arrays["weights"].tobytes() == trainer.model.arrays["weights"].tobytes()


@pytest.mark.parametrize("changes", [{"precision": "float32"}, {"stochastic_rounding": True}])
def test_a_run_keeps_its_precision(data, out, changes):
    trained(tiny(data, device="cpu", precision="bf16"), out, stop_after=2)
    with pytest.raises(UserError, match=f"{next(iter(changes)).replace('_', '-')} .* would make it another"):
        Trainer.resume(out, changes, quiet=True)
    assert Trainer.resume(out, {"precision": "auto"}, quiet=True).config.precision == "bfloat16"


def test_outliers_are_judged_by_the_same_window_after_a_resume(data, tmp_path):
    config = tiny(data, steps=140, eval_every=0, checkpoint_every=0)
    trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_after=131)
    Trainer.resume(tmp_path / "parts", quiet=True).train()
    scores = [[(e["loss_z"], e["norm_z"]) for e in events(tmp_path / name)] for name in ("whole", "parts")]
    assert scores[0] == scores[1]
    assert scores[0][127] == (None, None)
    assert None not in scores[0][128]


def test_steps_after_the_last_checkpoint_are_done_again(data, tmp_path):
    """As after kill -9: the logs know of steps that no checkpoint holds."""
    config = tiny(data)
    trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_after=7)
    checkpoint._remove(tmp_path / "parts" / "step_00000007")
    with open(tmp_path / "parts" / "main.log", "a") as file:
        file.write("s:7 trl:9.")
    resumed = Trainer.resume(tmp_path / "parts", quiet=True)
    assert resumed.step == 4
    resumed.train()
    assert (tmp_path / "whole" / "main.log").read_bytes() == (tmp_path / "parts" / "main.log").read_bytes()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_run_without_a_checkpoint_begins_again(data, tmp_path):
    config = tiny(data)
    trained(config, tmp_path / "whole")
    Trainer(config, tmp_path / "parts", quiet=True)  # killed before the first
    resumed = Trainer.resume(tmp_path / "parts", quiet=True)
    assert resumed.step == 0
    resumed.train()
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")


def test_a_finished_run_can_be_given_more_steps(data, out):
    trained(tiny(data, schedule="constant"), out)
    assert Trainer.resume(out, {"steps": 14, "keep": 1}, quiet=True).train().step == 14
    assert [step for step, _ in losses(out)] == list(range(14))
    assert Trainer.resume(out, quiet=True).config.steps == 14
    with pytest.raises(UserError, match="has done 14 steps: --steps 3 lies behind it"):
        Trainer.resume(out, {"steps": 3}, quiet=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, "started with --layers 1, and --layers 2 would make it another"),
        ({"batch_size": 4}, "--batch-size"),
        ({"seed": 1}, "--seed"),
        ({"model": "d12"}, "without --model, and --model d12"),
        ({"tokenizer": "bpe:300"}, "--tokenizer"),
    ],
)
def test_a_change_that_makes_another_run_is_refused(data, out, changes, message):
    trained(tiny(data), out, stop_after=2)
    before = files_of(out)
    with pytest.raises(UserError, match=message):
        Trainer.resume(out, changes, quiet=True)
    assert files_of(out) == before


def test_flags_that_only_repeat_a_run_may_be_given(data, out, monkeypatch):
    trained(tiny(data), out, stop_after=2)
    monkeypatch.chdir(data.parent)
    Trainer.resume(out, {"data": data.name, "layers": 1, "seed": 42}, quiet=True)


def test_other_data_are_noticed(tmp_path, out):
    data = write_data(tmp_path / "data")
    trained(tiny(data), out, stop_after=2)
    before = files_of(out)
    write_shard(data / "fox_train_000001.bin", np.zeros(701, np.uint32), VOCABULARY)
    with pytest.raises(UserError, match=r"is not what the run in .* began with"):
        Trainer.resume(out, quiet=True)
    assert files_of(out) == before


@pytest.mark.parametrize("name", ["config.toml", "step_00000004/model.safetensors", "step_00000004/state.json"])
def test_a_damaged_run_is_refused_and_left_as_it_is(data, out, name):
    trained(tiny(data), out, stop_after=4)
    contents = bytearray((out / name).read_bytes())
    contents[len(contents) // 2] ^= 1
    (out / name).write_bytes(contents)
    before = files_of(out)
    with pytest.raises(UserError, match=name) as refused:
        Trainer.resume(out, quiet=True)
    assert "\n" not in str(refused.value)
    assert files_of(out) == before


def test_a_signal_finishes_the_step_saves_and_stops(data, out, capfd, monkeypatch):
    trainer = Trainer(tiny(data), out, quiet=True)
    train_step = trainer.train_step

    def interrupted():
        if trainer.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        train_step()

    monkeypatch.setattr(trainer, "train_step", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    result = trainer.train()
    assert (result.step, result.reason) == (6, "signal")
    assert checkpoint.newest_step(out) == out / "step_00000006"
    assert signal.getsignal(signal.SIGTERM) is before
    assert "stopping after this step" in capfd.readouterr().err


def test_a_second_signal_stops_at_once(data, monkeypatch, capfd):
    trainer = Trainer(tiny(data), quiet=True)

    def interrupted():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(trainer, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert capfd.readouterr().err.count("stopping") == 1
