"""Runs whose batches are cut in other ways than llm.c's."""

import pytest

from llmpy import Trainer, UserError
from tests.tiny_runs import losses, tiny, trained

STORIES = "".join(f"The fox number {i} runs to the dog{'s' * (i % 30)}.\n<|endoftext|>\n" for i in range(60))


@pytest.fixture
def stories(tmp_path, own_cache):
    path = tmp_path / "stories.txt"
    path.write_text(STORIES)
    return path


@pytest.mark.parametrize("model", [None, "llama"])
def test_a_familys_own_way_is_its_default(stories, model):
    trainer = Trainer(tiny(stories, model=model), quiet=True)
    assert trainer.config.batches == trainer.train_data.batches == ("windows" if model else "stream")
    assert trainer.val_data.batches == "stream"


@pytest.mark.parametrize("batches", ["stream", "windows", "documents"])
def test_each_way_goes_on_to_the_bit_and_is_another(stories, tmp_path, batches):
    config = tiny(stories, batches=batches, keep=0)
    whole = trained(config, tmp_path / "whole")
    trained(config, tmp_path / "parts", stop_after=7)
    assert Trainer.resume(tmp_path / "parts", quiet=True).train().step == 10
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    other = "windows" if batches == "stream" else "stream"
    assert losses(tmp_path / "whole") != losses(trained(tiny(stories, batches=other), tmp_path / "other").out)
    with pytest.raises(UserError, match=f"was started with --batches {batches}, and --batches {other} would make it"):
        Trainer.resume(tmp_path / "parts", {"batches": other}, quiet=True)
    if batches == "documents":
        x, _ = whole.train_data.next_batch()
        assert (x[:, 0] == whole.tokenizer.end_of_text).all()


def test_a_part_for_validation_by_its_size(stories, tmp_path, data):
    half, little = (Trainer(tiny(stories, val_fraction=part), quiet=True).val_data.tokens for part in (0.5, 0.1))
    assert 4 * little < half < 6 * little
    with pytest.raises(UserError, match=r"--val-fraction: .* holds tokens already, and has been split: leave it out"):
        Trainer(tiny(data, val_fraction=0.1), quiet=True)


def test_a_vocabulary_larger_than_the_tokenizers_is_padding(stories, tmp_path):
    trainer = trained(tiny(stories, vocab_size=300), tmp_path / "run")
    assert (trainer.model.config.vocab_size, trainer.tokenizer.vocab_size) == (300, 257)
    assert max(trainer.tokenizer.encode("".join(trainer.sample())), default=0) < 257
    llama = Trainer(tiny(stories, model="llama", tokenizer=None, vocab_size=290), quiet=True)
    assert llama.config.tokenizer == "sentencepiece:290"
