"""The island, with a mind that has learned nothing: it babbles, and the day goes on."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from llmpy import Engine, Tokenizer
from llmpy.formats import llama2c
from llmpy.formats.load import load_model
from llmpy.inference.engine import prompt_ids
from llmpy.inference.sampling import Sampling
from llmpy.models.llama import LlamaConfig
from tests.model_files import llama_parameters

SAMPLING = Sampling(temperature=0.7, top_p=0.9, min_p=0.05)  # the minds'
EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = (
    'Once upon a time there was a little girl. She said, "I want to play." He said, "No, you can not." The end. ' * 20
)


@pytest.fixture
def island(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("chronicle", "minds", "island"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import island

    return island


@pytest.fixture
def model(tmp_path):
    tokenizer = Tokenizer.from_spec("sentencepiece:300", [TEXT])
    config = LlamaConfig(tokenizer.vocab_size, 256, layers=1, heads=2, channels=16)
    parameters = llama_parameters(config)
    ends = [i for i, text in enumerate(tokenizer.tokens) if text.endswith((b".", b'"'))]
    parameters.wte[:, 0], parameters.lnfw[0] = 0, 1
    parameters.wte[ends, 0] = 2  # sentences come to an end
    llama2c.write_model(tmp_path / "model.bin", config, parameters)
    tokenizer.save(tmp_path / "tokenizer.bin")
    return tmp_path / "model.bin"


def run(island, model, capsys, *flags):
    island.main(["--model", str(model), "--device", "reference", *map(str, flags)])
    return capsys.readouterr().out


def without_times(chronicle):
    return chronicle.split("\n== Night ==")[0]


def test_a_day_has_hours_scenes_and_figures_and_repeats_by_its_seed(island, model, capsys):
    flags = ["--villagers", 9, "--hours", 2, "--scenes", 2]
    day = run(island, model, capsys, *flags)
    assert re.findall(r"^== (.*) ==$", day, re.MULTILINE) == ["7:00", "8:00", "Night"]
    assert re.search(r"They went to bed \w+ \(\d\)", day)
    assert re.search(
        r"^[\d,]+ tokens said and [\d,]+ heard in [\d.]+ s: [\d,]+ tokens/s in total\.$", day, re.MULTILINE
    )
    assert re.search(r"one after the other, [\d,]+ tokens/s: [\d.]+ times as fast together\.$", day.strip())
    assert without_times(run(island, model, capsys, *flags)) == without_times(day)
    assert without_times(run(island, model, capsys, *flags, "--seed", 7)) != without_times(day)


def test_minds_go_on_side_by_side_as_each_would_alone(island, model):
    loaded = load_model(model)
    tokenizer = loaded.tokenizer
    batch = Engine(loaded, "reference", overflow="stop").batch(1)
    story = prompt_ids(tokenizer, "She said").tolist()
    request = batch.submit(story, SAMPLING, (1 << 32) + (1 << 16) + 1, 12, tokenizer.stop_ids)
    assert len(list(batch.run())) == 12
    alone = tokenizer.decode([*story, *request.tokens]).removeprefix("<s>She said")
    minds = island.Minds(loaded, 3, seed=1, backend="reference", precision="float32")
    said = []

    def tale(*wishes):
        for wish in wishes:
            said.append((wish.mind, (yield wish)))

    for mind, text in enumerate(("Once upon a time", "She said", "The end")):
        minds.begin(mind, text)
    wishes = [island.Wish(0, "no such words", 12), island.Wish(1, alone[4], 12), island.Wish(2, "x", 300)]
    minds.live([tale(wishes[0], wishes[2]), tale(wishes[1])])
    assert sorted(said) == [(0, ""), (1, alone.partition(alone[4])[0]), (2, "")]  # nor is there room for 300
    assert minds._stories[0] == prompt_ids(tokenizer, "Once upon a time").tolist()
    assert minds._stories[1][: len(story)] == story
    assert len(minds._stories[1]) > len(story)
    minds.hear(0, " He said")
    assert minds._stories[0][-len(tokenizer.encode("He said")) :] == tokenizer.encode("He said").tolist()


def test_villagers_remember_what_others_said(island, model):
    minds = island.Minds(load_model(model), 2, seed=1, backend="reference", precision="float32")
    here = island.Island(minds, 2, seed=1)
    lily, ben = here.villagers
    assert (lily.full_name, ben.full_name, ben.pronoun) == ("Lily", "Ben", "He")
    scene = island.Scene([lily, ben], "in the park", ["sad", "sad"], None, ["I have a ball.", "Can I play?"])
    lily.mood, ben.mood = "happy", "sad"
    here._remember(scene)
    assert lily.story(1) == (
        'Once upon a time, there was a little girl named Lily. She was happy. Ben said to her, "Can I play?"'
    )
    assert ben.friends == {0: 1}
    assert scene.text() == (
        "Lily met Ben in the park. Both were sad.\n"
        '    "I have a ball," said Lily.\n    "Can I play?" asked Ben.\n    Lily felt happy now.'
    )


@pytest.mark.parametrize(
    ("text", "speech", "wish"),
    [
        ("I want to play.", "I want to play.", ""),
        (" play with\nhim", "", ""),
        ("play with him", "", "play with him"),
        ("Yes!", "", ""),
        ("And then he said,", "", ""),
    ],
)
def test_what_is_no_sentence_is_not_said(island, text, speech, wish):
    assert (island.clean_speech(text), island.clean_wish(text)) == (speech, wish)


@pytest.mark.parametrize("flags", [["--villagers", "1"], ["--hours", "18"], ["--villagers", "601"]])
def test_what_cannot_be_is_said(island, flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        island.main(flags)
    assert stopped.value.code == 2
    assert f"{flags[0]} must be from" in capsys.readouterr().err


def test_more_villagers_than_names(island, model):
    minds = island.Minds(load_model(model), 2, seed=1, backend="reference", precision="float32")
    names = [villager.full_name for villager in island.Island(minds, 201, 1).villagers]
    assert len(set(names)) == 201
    assert names[100] == "Lily of the Hill"
    assert np.unique(island.NAMES).size == 100
