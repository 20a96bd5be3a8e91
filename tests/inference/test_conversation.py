"""The state of a conversation: what the model is told, what is forgotten, and when."""

import contextlib
import json

import pytest

from llmpy.errors import UserError
from llmpy.formats.load import load_model
from llmpy.inference.chat_template import find_template
from llmpy.inference.conversation import Conversation
from llmpy.inference.engine import Engine
from tests.chat_models import write_chat_model


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """`begin(context, **options)` -> a conversation with a model that babbles"""

    def begin(context=200, also=b"", **options):
        folder = tmp_path_factory.mktemp("model")
        model = load_model(write_chat_model(folder, context, also=also))
        engine = Engine(model, "reference")
        return Conversation(engine, find_template(model, model.tokenizer), **options)

    return begin


def say(conversation, text):
    return "".join(conversation.answer(text))


def test_the_model_is_told_all_that_was_said(begin):
    conversation = begin(context=400, system="Be kind.", max_tokens=5)
    answers = [say(conversation, "Hi"), say(conversation, "More")]
    assert [len(answer) for answer in answers] == [5, 5]
    assert [(m["role"], m["content"]) for m in conversation.messages] == [
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", answers[0]),
        ("user", "More"),
        ("assistant", answers[1]),
    ]
    prompt = conversation.template.encode(conversation.messages[:4])
    again = conversation.engine.generate(prompt, 5, seed=43, stop_ids=conversation.template.stop_ids)
    assert conversation.template.tokenizer.decode(ids[0] for ids in again) == answers[1]


def test_what_was_said_is_not_read_again(begin):
    conversation = begin(context=400, system="Be kind.", max_tokens=9)
    say(conversation, "Hi")
    decoder, read = conversation.engine._batch.decoder, []
    prefill = decoder.prefill

    def recorded(tokens, slot, start):
        read.append((start, len(tokens)))
        return prefill(tokens, slot, start)

    decoder.prefill = recorded
    for text in ("More", "And more"):
        before = len(conversation._history.tokens)
        say(conversation, text)
        prompt = conversation.template.encode(conversation.messages[:-1])
        assert read[-1] == (before - 1, len(prompt) - before + 1)  # the last token that was made, and what is new
    conversation.reset()
    say(conversation, "Hi")
    assert read[-1][0] == 16  # what every conversation with this system text begins with


def test_an_answer_that_is_given_room_goes_on_past_the_context(begin):
    conversation = begin(context=100, max_tokens=150)
    assert len(say(conversation, "Hi")) == 150
    with pytest.raises(UserError, match="too long"):
        say(conversation, "x" * 100)
    assert len(say(conversation, "Hi")) == 150
    assert conversation.forgotten == 2


def test_a_seed_repeats_a_conversation(begin):
    talks = []
    for seed in (1, 1, 2):
        conversation = begin(seed=seed, max_tokens=6)
        talks.append([say(conversation, "Hi"), say(conversation, "Hi")])
    assert talks[0] == talks[1] != talks[2]


def test_reset_keeps_the_system_text_alone(begin):
    conversation = begin(system="Be kind.", max_tokens=5)
    say(conversation, "Hi")
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "Be kind."}]


def test_an_answer_ends_where_the_context_is_full(begin):
    conversation = begin(context=100)
    prompt = conversation.template.encode([{"role": "user", "content": "Hi"}])
    assert len(say(conversation, "Hi")) == 100 - len(prompt)


def test_the_oldest_turns_go_and_the_system_text_stays(begin):
    conversation = begin(context=180, system="S", max_tokens=20)
    for number in range(5):
        say(conversation, f"message {number}")
    kept = [message["content"] for message in conversation.messages if message["role"] == "user"]
    assert conversation.messages[0] == {"role": "system", "content": "S"}
    assert kept == [f"message {number}" for number in range(5 - len(kept), 5)]
    assert 0 < len(kept) < 5
    assert conversation.forgotten == 2 * (5 - len(kept))


def test_a_message_that_is_too_long_changes_nothing(begin):
    conversation = begin(context=100, max_tokens=5)
    say(conversation, "Hi")
    before = conversation.messages
    with pytest.raises(UserError, match="too long"):
        say(conversation, "x" * 100)
    assert conversation.messages == before
    assert conversation.forgotten == 0


def test_what_was_said_before_an_answer_was_stopped_is_the_answer(begin):
    conversation = begin()
    with contextlib.closing(conversation.answer("Hi")) as pieces:
        said = next(pieces) + next(pieces)
    assert conversation.messages[-1] == {"role": "assistant", "content": said}
    with contextlib.closing(conversation.answer("never mind")):
        pass
    assert conversation.messages[-1]["content"] == said


def test_an_answer_ends_before_a_stop_string(begin):
    whole = say(begin(max_tokens=40), "Hi")
    stop = whole[6:8]
    assert say(begin(max_tokens=40, stop_strings=[stop]), "Hi") == whole[: whole.index(stop)]


def test_white_space_before_an_answer_is_the_templates(begin):
    conversation = begin(max_tokens=30, also=b" \n")
    answers = [say(conversation, "Hi") for _ in range(12)]
    assert any(" " in answer or "\n" in answer for answer in answers)
    assert all(answer == answer.lstrip() for answer in answers)


def test_a_conversation_is_saved_as_json(begin, tmp_path):
    conversation = begin(system="Grüße", max_tokens=5)
    say(conversation, "Hi")
    conversation.save(tmp_path / "talk.json", "tiny")
    saved = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert saved["messages"] == conversation.messages
    assert saved["model"] == "tiny"
    with pytest.raises(UserError, match="cannot write"):
        conversation.save(tmp_path / "talk.json" / "more.json", "tiny")
