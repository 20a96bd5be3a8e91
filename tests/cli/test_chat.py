"""llmpy chat: messages from a pipe and from a terminal, its commands, and Ctrl-C."""

import io
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmpy.cli import main
from tests.chat_models import write_chat_model

ROOT = Path(__file__).resolve().parents[2]
FAST = ["--device", "reference"]
# A program whose standard streams are a terminal, its own: Ctrl-C there is a signal to it.
IN_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(terminal, stream)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model", 600)


@pytest.fixture
def chat(model, capsys, monkeypatch):
    """`chat(lines, *arguments)` -> (status, stdout, stderr), the lines coming from a pipe."""

    def chat(lines, *arguments, command="chat", source=model):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        status = main([command, str(source), *FAST, *map(str, arguments)])
        return status, *capsys.readouterr()

    return chat


def test_every_line_of_a_pipe_is_a_message(chat):
    status, out, err = chat("Hi\n\nAnd more\n", "-n", 8, "-s", 1)
    assert (status, err) == (0, "")
    answers = out.splitlines()
    assert [len(answer) for answer in answers] == [8, 8]
    assert chat("Hi\nAnd more\n", "-n", 8, "-s", 1)[1] == out
    assert chat("Hi\nAnd more\n", "-n", 8, "-s", 1, "--system", "S")[1] != out
    assert chat("And more", "-n", 8, "-s", 1, "-i", "Hi")[1] == out


def test_llama2cs_flags_converse_too(chat):
    out = chat("Hi\nAnd more\n", "-n", 8, "-s", 1, "--system", "S")[1]
    assert chat("Hi\nAnd more\n", "-n", 8, "-s", 1, "-m", "chat", "-y", "S", command="run")[1] == out
    assert chat("And more\n", "-n", 8, "-s", 1, "-m", "chat", "-y", "S", "-i", "Hi", command="run")[1] == out


def test_the_commands(chat, tmp_path):
    file = tmp_path / "talk.json"
    lines = f"/help\nHi\n/reset\nAgain\n//slash\n/save {file}\n/quit\nnever\n"
    status, out, err = chat(lines, "-n", 4, "-s", 1)
    assert status == 0
    assert len(out.splitlines()) == 3
    assert all(f"\n{command} " in f"\n{err}" for command in ("/reset", "/save", "/help", "/quit"))
    said = [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"]
    assert said == ["Again", "/slash"]


def test_that_messages_are_forgotten_is_said_once(chat):
    status, out, err = chat("message\n" * 12, "-n", 40, "-s", 1)
    assert status == 0
    assert len(out.splitlines()) == 12
    assert err.count("the oldest messages are forgotten") == 1


@pytest.mark.parametrize(
    ("lines", "arguments", "why"),
    [
        ("/save\n", [], "needs the name of a file"),
        ("/nothing\n", [], "no command /nothing"),
        ("x" * 700, [], "too long"),
        ("Hi", ["--template", "llama3"], "<|begin_of_text|>"),
        ("Hi", ["--template", "missing.jinja"], "cannot read the chat template missing.jinja"),
        ("Hi", ["-n", 0], "1 token or more"),
        ("Hi", ["--min-p", 2], "min-p"),
    ],
)
def test_a_mistake_in_a_pipe_is_one_line_and_status_1(lines, arguments, why, chat):
    status, out, err = chat(lines, *arguments)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert why in err


def test_a_model_without_a_template_says_so(chat, models):
    status, out, err = chat("Hi\n", source=models / "folder")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "has no chat template" in err


@pytest.mark.parametrize("flag", ["--logprobs", "--no-stop"])
def test_what_makes_no_sense_in_a_conversation_is_refused(flag, chat):
    assert f"{flag} does not go together with -m chat" in chat("Hi\n", "-m", "chat", flag, command="run")[2]
    assert "add -m chat" in chat("Hi\n", "-y", "S", command="run")[2]


class Terminal:
    """`llmpy chat` in a terminal of its own."""

    def __init__(self, *arguments):
        self.ours, theirs = os.openpty()
        name = os.ttyname(theirs)
        command = [sys.executable, "-c", IN_TERMINAL, name, "-m", "llmpy", "chat", *map(str, arguments), *FAST]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", "TERM": "dumb"}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.seen = ""
        self.theirs = theirs  # open until the end, so that reading never fails

    def expect(self, text, seconds=60):
        """Waits until the text is shown; what was shown up to it."""
        self._wait(lambda: text in self.seen, f"no {text!r}", seconds)
        before, _, self.seen = self.seen.partition(text)
        return before

    def expect_more(self, characters, seconds=60):
        self._wait(lambda: len(self.seen) >= characters, "nothing more", seconds)

    def _wait(self, done, what, seconds):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, f"{what} in {self.seen!r}"
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")

    def type(self, keys):
        os.write(self.ours, keys.encode())

    def leave(self):
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()
            os.close(self.ours)
            os.close(self.theirs)


@pytest.fixture(scope="module")
def talkative(tmp_path_factory):
    """Its answers take several seconds."""
    return write_chat_model(tmp_path_factory.mktemp("chat") / "model", 4096, layers=24)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_ctrl_c_stops_the_answer_and_not_the_program(talkative, tmp_path):
    terminal = Terminal(talkative, "-s", 1)
    terminal.expect("/help for help")
    terminal.expect("> ")
    terminal.type("Hi\r")
    terminal.expect("Hi\r\n")
    terminal.expect_more(5)
    terminal.type("\x03")
    terminal.expect("(stopped)")
    terminal.expect("> ")
    file = tmp_path / "talk.json"
    terminal.type(f"/save {file}\r")
    terminal.expect("saved in")
    said = json.loads(file.read_text())["messages"]
    assert [m["role"] for m in said] == ["user", "assistant"]
    assert 5 <= len(said[1]["content"]) < 3900
    terminal.expect("> ")
    terminal.type("/nonsense\r")
    terminal.expect("no command /nonsense")
    terminal.expect("> ")
    terminal.type("\x03")
    terminal.expect("(Ctrl-C again leaves)")
    terminal.type("/help\r")
    terminal.expect("/reset")
    terminal.expect("> ")
    terminal.type("\x03")
    terminal.expect("(Ctrl-C again leaves)")
    terminal.expect("> ")
    terminal.type("\x03")
    assert terminal.leave() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such terminals")
def test_ctrl_d_leaves(model):
    terminal = Terminal(model, "-n", 5)
    terminal.expect("> ")
    terminal.type("Hi\r")
    terminal.expect("> ")
    terminal.type("\x04")
    assert terminal.leave() == 0


def test_ctrl_c_ends_a_conversation_that_comes_from_a_pipe(talkative):
    command = [sys.executable, "-m", "llmpy", "chat", str(talkative), *FAST]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe) as running:
        running.stdin.write(b"Hi\n")
        running.stdin.flush()
        assert running.stdout.read(3)
        running.send_signal(signal.SIGINT)
        assert running.wait(30) == 130
        assert running.stderr.read() == b"llmpy: interrupted\n"
