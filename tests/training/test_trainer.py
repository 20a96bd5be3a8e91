"""Training: it learns, and says in a line what cannot be. That it stops and goes on: test_trainer_resume.py."""

import json
import math

import numpy as np
import pytest

from llmpy import TrainConfig, Trainer, UserError
from llmpy.data.dataloader import DataLoader
from llmpy.formats.llmc.shards import write_shard
from llmpy.formats.load import load_model
from llmpy.kernels import reference
from llmpy.models.presets import is_descriptor
from llmpy.training import checkpoint
from llmpy.training.setup import with_absolute_paths
from llmpy.utils import system_memory
from tests.tiny_runs import TEXT, VOCABULARY, events, losses, tiny, trained

# ---- it learns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["reference", "cpu"])
def test_a_run_learns_and_leaves_its_records(data, out, device):
    trainer = Trainer(tiny(data, steps=40, device=device, log_every=-1), out, quiet=True)
    result = trainer.train()
    assert (result.step, result.reason) == (40, "finished")
    assert result.val_loss < math.log(VOCABULARY) - 1.5
    assert sorted(path.name for path in out.iterdir()) == [
        "config.toml", "main.log", "metrics.jsonl", "step_00000036", "step_00000040", "tokenizer.json",
    ]  # fmt: skip
    assert [step for step, _ in losses(out)] == list(range(40))
    assert [event["step"] for event in events(out, "validation")] == [*range(0, 41, 4)]
    log = (out / "main.log").read_text().splitlines()
    assert log[0].startswith("s:0 tel:5.")
    assert log[1].startswith("s:0 trl:5.")
    assert log[-1] == f"s:40 tel:{result.val_loss:.4f}"
    assert load_model(out).config == trainer.model.config


def test_both_backends_learn_alike(data):
    ours, reference = (trained(tiny(data, device=device)) for device in ("cpu", "reference"))
    assert ours.train_loss == pytest.approx(reference.train_loss, rel=1e-4)
    assert ours.val_loss == pytest.approx(reference.val_loss, rel=1e-4)


def test_without_a_folder_nothing_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained(tiny(data)).step == 10
    assert not list(tmp_path.iterdir())


def test_small_batches_added_up_are_a_large_one(data):
    large = trained(tiny(data, batch_size=4, steps=1, eval_every=0))
    small = Trainer(tiny(data, batch_size=2, total_batch_tokens=48, steps=1, eval_every=0), quiet=True)
    batches = DataLoader(large.train_data.files, 4, 12, seed=42)  # the same sequences, two at a time
    x, y = batches.next_batch()
    halves = iter([(x[:2], y[:2]), (x[2:], y[2:])])
    small.train_data.next_batch = lambda: next(halves)
    small.train()
    assert small.train_loss == pytest.approx(large.train_loss, rel=1e-6)
    np.testing.assert_allclose(small.model.parameters.flat, large.model.parameters.flat, atol=1e-5)


@pytest.mark.parametrize("recompute", [1, 2])
def test_recomputation_changes_no_bit(data, recompute):
    plain, again = trained(tiny(data)), trained(tiny(data, recompute=recompute))
    np.testing.assert_array_equal(plain.model.parameters.flat, again.model.parameters.flat)


def test_one_batch_can_be_learned_by_heart(data, out):
    trainer = trained(tiny(data, overfit=True, steps=150, lr=2e-2, schedule="constant", eval_every=0), out)
    assert trainer.train_loss < 0.3
    assert events(out)[0]["loss"] > 5


def test_the_learning_rate_follows_the_schedule(data, out):
    trained(tiny(data, steps=10, warmup=2, schedule="linear", final_lr_fraction=0.5), out)
    rates = [event["lr"] for event in events(out)]
    assert rates == pytest.approx([0.005, 0.01, *(0.01 - 0.005 * i / 8 for i in range(8))])


def test_what_is_left_open_is_chosen_and_written_down(data, out):
    config = trained(tiny(data, lr=None, heads=None, channels=128, steps=-1), out).config
    assert (config.heads, config.steps, config.warmup) == (2, (899 // 24) + (699 // 24), 3)
    assert config.lr == 0.0025
    assert "lr = 0.0025" in (out / "config.toml").read_text()


def test_the_config_of_a_run_repeats_it(data, tmp_path):
    trained(tiny(data), tmp_path / "first")
    from llmpy.training.config import from_settings
    from llmpy.training.config_file import read_toml

    trained(from_settings(read_toml(tmp_path / "first" / "config.toml")), tmp_path / "second")
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    for name in ("config.toml", "main.log", "step_00000010/model.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_a_run_can_begin_with_another_ones_model(data, tmp_path):
    first = trained(tiny(data), tmp_path / "first")
    config = tiny(data, model=str(tmp_path / "first"), tokenizer=None, layers=None, heads=None, channels=None)
    second = Trainer(config, tmp_path / "second", quiet=True)
    np.testing.assert_array_equal(second.model.parameters.flat, first.model.parameters.flat)
    assert second.tokenizer.name == "bytes"
    second.stop_after = 4
    second.train()
    for path in (tmp_path / "first").rglob("*"):  # what it began with is not needed to go on
        path.unlink() if path.is_file() else None
    resumed = Trainer.resume(tmp_path / "second", quiet=True)
    assert resumed.train().step == 10


# ---- validation and samples --------------------------------------------------------------------------------------


def test_validation_is_the_mean_over_the_same_batches_each_time(data):
    trainer = Trainer(tiny(data, eval_batches=-1), quiet=True)
    loader = DataLoader(trainer.val_data.files, 2, 12, shuffle=False)
    expected = [trainer.model.loss(*loader.next_batch()) for _ in range(loader.batches_per_epoch)]
    assert trainer.validate() == trainer.validate() == pytest.approx(np.mean(expected), rel=1e-12)


def test_a_short_text_validates_on_fewer_sequences(data, tmp_path):
    tokens = np.frombuffer(TEXT, np.uint8)[:40].astype(np.uint32)
    write_shard(tmp_path / "val.bin", tokens, VOCABULARY)
    trainer = Trainer(tiny(data, batch_size=8, val_data=str(tmp_path / "val.bin")), quiet=True)
    assert trainer.val_data.B == 3
    one = Trainer(tiny(data, batch_size=3), quiet=True).model
    expected = one.loss(tokens[:36].reshape(3, 12).astype(np.int32), tokens[1:37].reshape(3, 12).astype(np.int32))
    assert trainer.validate() == pytest.approx(expected, rel=1e-6)


def test_a_text_shorter_than_a_sequence_does_not_validate(data, tmp_path, out):
    write_shard(tmp_path / "val.bin", np.arange(12, dtype=np.uint32), VOCABULARY)
    trainer = trained(tiny(data, val_data=str(tmp_path / "val.bin")), out)
    assert trainer.val_loss is None
    assert "none to validate on" in trainer.describe()
    assert "tel" not in (out / "main.log").read_text()


def test_samples_are_written_as_it_trains_and_at_the_end(data, out, capsys):
    config = tiny(data, sample_every=4, sample_tokens=5, sample_prompt="The ")
    Trainer(config, out).train()
    samples = events(out, "sample")
    assert [event["step"] for event in samples] == [4, 8, 10]
    shown = capsys.readouterr().out
    for event in samples:
        assert event["text"].startswith("The ")
        assert f"---\n{event['text']}\n---\n" in shown


def test_samples_change_nothing_else(data, tmp_path):
    trained(tiny(data), tmp_path / "plain")
    trained(tiny(data, sample_every=2, sample_tokens=3), tmp_path / "sampling")
    assert losses(tmp_path / "plain") == losses(tmp_path / "sampling")


# ---- what goes wrong ---------------------------------------------------------------------------------------------


def poison(trainer, step, value=math.nan):
    """From a step on the model is broken."""
    train_step = trainer.train_step

    def poisoned():
        if trainer.step == step:
            trainer.model.parameters.flat[:5] = value
            trainer.model.pack_weights(step)
        train_step()

    trainer.train_step = poisoned


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_nan_stops_the_run_keeps_the_last_good_checkpoint_and_says_the_step(data, out, precision):
    trainer = Trainer(tiny(data, device="cpu", precision=precision), out, quiet=True)
    poison(trainer, 6)
    with pytest.raises(UserError, match=r"loss became nan at step 7: the last good checkpoint is .*step_00000004"):
        trainer.train()
    assert [path.name for path in out.glob("step_*")] == ["step_00000004"]
    checkpoint.verify(out / "step_00000004")
    assert [step for step, _ in losses(out)] == list(range(6))


def test_a_model_that_broke_in_the_last_update_is_not_saved(data, out):
    trainer = Trainer(tiny(data, device="cpu", eval_every=0, checkpoint_every=1, keep=1), out, quiet=True)
    update = trainer.optimizer.update

    def breaking(step, lr, scale):
        update(step, lr, scale)
        if step == 5:
            trainer.model.parameters.flat[:] = math.inf

    trainer.optimizer.update = breaking
    with pytest.raises(UserError, match=r"became nan at step 6: the last good checkpoint is .*step_00000004"):
        trainer.train()
    assert checkpoint.newest_step(out) == out / "step_00000004"


def test_outliers_are_skipped(data, out):
    trainer = Trainer(tiny(data, steps=131, skip_norm_z=5, lr=1e-4, eval_every=0), out, quiet=True)
    norm = trainer.optimizer.gradient_norm
    trainer.optimizer.gradient_norm = lambda: norm() * (1000 if trainer.step == 130 else 1)
    states = []
    update = trainer.optimizer.update
    trainer.optimizer.update = lambda *args: (states.append(trainer.step), update(*args))
    trainer.train()
    assert states == list(range(130))
    assert [event["skipped"] for event in events(out)] == [False] * 130 + [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_size": 100},
            r"too short: 900 tokens, but one batch of 100 x 12 .* lower .*the batch size to at most 74",
        ),
        ({"sequence_length": 1000}, "lower the sequence length to at most 449"),
        ({"heads": 3}, "16 channels cannot be shared by 3 heads: use 1, 2, 4 heads"),
        ({"tokenizer": "bpe:300"}, "holds tokens already"),
        ({"tokenizer": "no-such"}, "no tokenizer 'no-such'"),
        ({"data": "/no/such/text.txt"}, "cannot read /no/such/text.txt: No such file"),
        ({"data": "no-such-corpus"}, "no corpus and no file 'no-such-corpus'"),
        ({"model": "d13", "layers": None, "heads": None, "channels": None}, "no model is named 'd13'"),
        ({"model": "./no-such", "layers": None, "heads": None, "channels": None}, "no file or folder"),
        ({"total_batch_tokens": 24 * 1000, "steps": -1}, "once through the data is less than one step"),
        ({"threads": 10_000, "device": "cpu"}, "--threads 10000: this machine offers"),
    ],
)
def test_what_does_not_fit_is_said_and_nothing_is_written(data, out, changes, message):
    with pytest.raises(UserError, match=message) as refused:
        Trainer(tiny(data, **changes), out, quiet=True)
    assert "\n" not in str(refused.value)
    assert not out.exists()


def test_a_sequence_longer_than_the_models_context_is_refused(data, tmp_path):
    trained(tiny(data), tmp_path / "first")
    config = tiny(data, model=str(tmp_path / "first"), layers=None, heads=None, channels=None, sequence_length=13)
    with pytest.raises(UserError, match="--sequence-length 13 is more than the model's context: give at most 12"):
        Trainer(config, quiet=True)


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path, data, own_cache):
    trained(tiny(data), tmp_path / "first")
    (tmp_path / "text.txt").write_bytes(TEXT)
    config = tiny(
        tmp_path / "text.txt",
        model=str(tmp_path / "first"),
        tokenizer="bpe:270",
        layers=None,
        heads=None,
        channels=None,
    )
    with pytest.raises(UserError, match=r"bpe:270 has 270 tokens, and .*first knows 257: use the --tokenizer that"):
        Trainer(config, quiet=True)


def test_too_little_memory_is_said_with_what_would_fit(data, monkeypatch):
    def room(batch_size, recompute=0):
        config = tiny(data, batch_size=batch_size, layers=4, recompute=recompute)
        return Trainer(config, quiet=True).model.memory.bytes + system_memory.RESERVE

    rooms = room(5), room(1) - 1, room(1, recompute=1) - 1
    config = tiny(data, batch_size=20, layers=4)
    monkeypatch.setattr(system_memory, "available_memory", lambda: rooms[0])
    with pytest.raises(
        UserError, match=r"--batch-size 20 of 12 tokens needs .* GB .* are free: --batch-size 5 would fit"
    ):
        Trainer(config, quiet=True)
    monkeypatch.setattr(system_memory, "available_memory", lambda: rooms[1])
    with pytest.raises(UserError, match=r"--batch-size 1 with --recompute 1 would fit"):
        Trainer(config, quiet=True)
    monkeypatch.setattr(system_memory, "available_memory", lambda: rooms[2])
    with pytest.raises(UserError, match=r"--batch-size 1 with --recompute 2 would fit"):
        Trainer(config, quiet=True)
    monkeypatch.setattr(system_memory, "available_memory", lambda: system_memory.RESERVE)
    with pytest.raises(UserError, match=r"the model alone takes .* GB, so choose a smaller one"):
        Trainer(config, quiet=True)


def test_an_absurd_batch_is_refused_at_once(data, monkeypatch):
    monkeypatch.setattr("llmpy.training.setup.DataLoader", lambda *_, **__: None)
    with pytest.raises(UserError, match="--batch-size 1000000000000 of 12 tokens needs"):
        Trainer(tiny(data, batch_size=10**12), quiet=True)


def test_a_damaged_shard_is_refused_by_name(tmp_path, own_cache, out):
    from llmpy.data.prepare import prepare

    (tmp_path / "fox.txt").write_bytes(TEXT)
    prepare(str(tmp_path / "fox.txt"), "bytes", tmp_path / "data")
    shard = tmp_path / "data" / "fox_train.bin"
    whole = shard.read_bytes()
    for damaged in (whole[:-1], whole[:1500] + bytes([whole[1500] ^ 1]) + whole[1501:], whole[:100]):
        shard.write_bytes(damaged)
        for source in (tmp_path / "data", shard):
            with pytest.raises(UserError, match=r"fox_train\.bin is (damaged|no shard)"):
                Trainer(tiny(source), out, quiet=True)
    assert not out.exists()
    shard.write_bytes(whole)
    assert trained(tiny(tmp_path / "data"), out).step == 10


def test_text_is_prepared_by_itself(tmp_path, own_cache, out):
    (tmp_path / "fox.txt").write_bytes(TEXT)
    trainer = trained(tiny(tmp_path / "fox.txt", tokenizer="bpe:270"), out)
    assert trainer.model.config.vocab_size == trainer.tokenizer.vocab_size <= 270
    assert trainer.val_loss is not None


def test_a_text_to_validate_on_leaves_the_whole_of_the_other_to_train_on(tmp_path, own_cache):
    (tmp_path / "fox.txt").write_bytes(TEXT)
    (tmp_path / "val.txt").write_bytes(TEXT[:600])
    part = Trainer(tiny(tmp_path / "fox.txt"), quiet=True)
    whole = Trainer(tiny(tmp_path / "fox.txt", val_data=str(tmp_path / "val.txt")), quiet=True)
    assert whole.train_data.tokens == part.train_data.tokens + part.val_data.tokens
    assert whole.val_data.tokens <= 602


def test_names_stay_and_files_get_their_full_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shakespeare").mkdir()
    (tmp_path / "a.txt").touch()
    config = with_absolute_paths(TrainConfig(data="a.txt", val_data="*.md", tokenizer="bpe:300", model="d12"))
    assert (config.data, config.val_data) == (str(tmp_path / "a.txt"), str(tmp_path / "*.md"))
    assert (config.tokenizer, config.model) == ("bpe:300", "d12")
    assert with_absolute_paths(TrainConfig(data="shakespeare")).data == "shakespeare"
    assert is_descriptor("gpt2:d24")
    assert not is_descriptor("gpt2")


def test_metrics_are_json_that_others_read(data, out):
    trained(tiny(data), out)
    for line in (out / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_the_share_of_a_known_cards_speed_is_told_and_recorded(data, out, monkeypatch, capsys):
    monkeypatch.setattr(reference, "peak_flops", lambda precision: 1e10)
    monkeypatch.setattr(reference, "device_name", lambda: "NVIDIA H200")
    run = Trainer(tiny(data, steps=2), out)
    run.train()
    assert "MFU | " in capsys.readouterr().out
    assert "device: NVIDIA H200, at most 0 TFLOP/s in float32" in run.describe()
    steps = events(out)
    assert [event["mfu"] for event in steps] == pytest.approx([event["gflops"] / 10 for event in steps])


def test_without_a_known_card_no_share_is_told(data, out, capsys):
    run = Trainer(tiny(data, steps=2), out)
    run.train()
    assert "GFLOP/s | " in capsys.readouterr().out
    assert "device" not in run.describe()
    assert "mfu" not in (out / "metrics.jsonl").read_text()
