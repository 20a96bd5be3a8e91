"""Stop strings: what is shown, what is held back, and that no piece of one is ever shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmpy.errors import UserError
from llmpy.inference.text_stream import StopStrings, TextStream
from llmpy.tokenization.base import ByteTokenizer, StreamDecoder

LETTERS = st.text("ab", max_size=12)


@given(pieces=st.lists(LETTERS, max_size=8), strings=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_the_text_up_to_the_first_stop_string(pieces, strings):
    stops, text, shown = StopStrings(strings), "".join(pieces), ""
    starts = [text.find(string) for string in strings if string in text]
    for piece in pieces:
        shown += stops.feed(piece)
        assert text.startswith(shown)
    shown += stops.finish()
    assert stops.stopped == bool(starts)
    if not starts:
        assert shown == text
    else:
        # One that is whole earlier ends the text, though another that begins before it might have been whole later.
        assert not any(string in shown for string in strings)
        assert any(text.startswith(string, len(shown)) for string in strings)


def test_only_what_may_be_a_beginning_is_held_back():
    stops = StopStrings(["STOP"])
    assert [stops.feed(piece) for piece in ("one S", "ix ST", "OLE", " STO")] == ["one ", "Six ", "STOLE", " "]
    assert stops.finish() == "STO"


def test_nothing_comes_behind_a_stop_string():
    stops = StopStrings(["."])
    assert (stops.feed("a. b"), stops.feed("c"), stops.finish(), stops.stopped) == ("a", "", "", True)


def test_a_character_in_several_tokens_may_be_a_stop_string():
    stream = TextStream(StreamDecoder(ByteTokenizer()), ["é"])
    assert [stream.feed(byte) for byte in "aéb".encode()] == ["a", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_a_stop_string_must_say_something():
    with pytest.raises(UserError, match="empty"):
        StopStrings(["a", ""])
