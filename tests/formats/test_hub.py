"""Models by name, from a hub of our own on this machine."""

import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llmpy.errors import UserError
from llmpy.formats.huggingface import folder as huggingface
from llmpy.formats.huggingface import hub
from llmpy.tokenization.base import ByteTokenizer
from tests.formats.test_huggingface import set_config, shard
from tests.model_files import CONFIG, make_model

ROOT = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves folders as huggingface.co does, as far as hf_hub_download asks; `asked` are the files it was asked for."""

    def __init__(self, models: dict[str, Path]) -> None:
        self.asked: list[str] = []
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name, _, rest = self.path.strip("/").partition("/resolve/")
                file = rest.partition("/")[2]
                if self.command == "GET":
                    server.asked.append(file)
                if name not in models or not (models[name] / file).is_file():
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound" if name in models else "RepoNotFound")
                    self.send_header("X-Repo-Commit", COMMIT)
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                data = (models[name] / file).read_bytes()
                self.send_response(200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{name.replace("/", "-")}-{file}"')
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def models(tmp_path):
    """Four models: whole, in shards, of another kind, and as a pickle."""
    folders = {name: tmp_path / name for name in ("tiny", "in-shards", "llama", "pickled")}
    for folder in folders.values():
        huggingface.write_model(folder, CONFIG, make_model().parameters)
    ByteTokenizer().save(folders["tiny"] / "tokenizer.json")
    (folders["tiny"] / "tokenizer_config.json").write_text("{}")
    shard(folders["in-shards"])
    set_config(folders["llama"], model_type="gemma")
    (folders["pickled"] / "model.safetensors").rename(folders["pickled"] / "pytorch_model.bin")
    return {f"someone/{name}": folder for name, folder in folders.items()}


def load(endpoint, cache, *names):
    """What `llmpy.load` says of each name, in a process of its own: huggingface_hub reads its settings once."""
    script = """
import sys, llmpy
for name in sys.argv[1:]:
    try:
        model = llmpy.load(name)
        print(model.config.channels, model.tokenizer and model.tokenizer.name, model.kind)
    except llmpy.UserError as error:
        print(error)
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = inherited | {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "no_proxy": "127.0.0.1"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, *names], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert result.stderr == ""
    return result.stdout.splitlines()


def test_models_by_name_then_from_the_cache_without_a_network(models, tmp_path):
    cache, names = tmp_path / "cache", ("someone/tiny", "someone/in-shards")
    server = Hub(models)
    expected = ["12 bytes Hugging Face model someone/tiny", "12 None Hugging Face model someone/in-shards"]
    refused = ("someone/llama", "someone/pickled", "someone/nobody")
    try:
        found = load(server.url, cache, *names, *refused)
    finally:
        server.stop()
    assert found[:2] == expected
    assert 'model_type is "gemma"' in found[2]
    assert "no model.safetensors" in found[3]
    assert "neither a file or folder here nor a model" in found[4]
    # only what is needed, and no weights of a model that cannot be run
    assert sorted(server.asked) == sorted(
        [*["config.json"] * 4, "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
        + ["model.safetensors.index.json"]
        + [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    )
    again = load(server.url, cache, *names, "someone/else")
    assert again[:2] == expected
    assert "is not in the cache" in again[2]
    assert "127.0.0.1 cannot be reached" in again[2]


@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2", "someone/gpt-2.1_x", "runs/default"])
def test_names_that_may_be_a_models(name):
    assert hub.is_hub_name(name)


@pytest.mark.parametrize(
    "name", ["/gpt2", "./gpt2", "a/b/c", "gpt2.bin", "", "a b", "../x", "model.safetensors", "~/x"]
)
def test_names_that_are_paths(name):
    assert not hub.is_hub_name(name)


def test_offline_is_obeyed(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub.download_model("someone/nobody-has-this")
