"""What tests of several packages share."""

import http.server
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# A machine that is busy is not a failure, and a fixture that only names a folder may be used by all examples.
settings.register_profile(
    "llmpy", deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
settings.load_profile("llmpy")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real files of other projects, where a checkout has them beside it."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no shared data beside this checkout")
    return path


@pytest.fixture
def gpt2_cache(shared_data, monkeypatch) -> None:
    """GPT-2's vocabulary without a network."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(shared_data / "tiktoken"))


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    """A cache folder for this test alone."""
    monkeypatch.setenv("LLMPY_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class FileServer:
    """Serves `content` on the loopback address. `cut` ends each answer after so many bytes, `ranges` obeys Range."""

    def __init__(self) -> None:
        self.content = b""
        self.cut: int | None = None
        self.ranges = True
        self.requests: list[str | None] = []  # the Range of each
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(self.headers["Range"])
                if self.path != "/file":
                    return self.send_error(404)
                size, start = len(server.content), 0
                if server.ranges and self.headers["Range"]:
                    start = int(self.headers["Range"].removeprefix("bytes=").rstrip("-"))
                    if start >= size:
                        self.send_response(416)
                        self.send_header("Content-Range", f"bytes */{size}")
                        self.send_header("Content-Length", "0")
                        return self.end_headers()
                    self.send_response(206)
                else:
                    self.send_response(200)
                self.send_header("Content-Length", str(size - start))
                self.end_headers()
                self.wfile.write(server.content[start : None if server.cut is None else start + server.cut])

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/file"

    def run(self) -> Callable[[], None]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()

        def stop() -> None:
            self._server.shutdown()
            thread.join()
            self._server.server_close()

        return stop


@pytest.fixture
def file_server(monkeypatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    stop = server.run()
    yield server
    stop()


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Shards of tokens for runs of a few steps; see tiny_runs.py."""
    from tests.tiny_runs import write_data

    return write_data(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture
def out(tmp_path) -> Path:
    """Where a run goes; not there yet."""
    return tmp_path / "run"


@pytest.fixture(scope="session")
def model() -> Any:
    """A GPT-2 of odd sizes, on the reference backend."""
    from tests.model_files import make_model

    return make_model()


@pytest.fixture
def small_memory(monkeypatch) -> Callable[[Path], None]:
    """`small_memory(path)` limits the memory of later reads to what a file of that size can justify."""
    from llmpy.utils.memory import MemoryPlan

    def limit(path: Path) -> None:
        size = path.stat().st_size if path.exists() else 0
        take = MemoryPlan.take

        def checked(plan: MemoryPlan, *arguments: str) -> dict[str, Any]:
            # elements in half precision double, and the vocabulary is padded to a multiple of 128 rows
            assert plan.bytes <= 4 * size + 65536, f"{plan.bytes} bytes for a file of {size}"
            return take(plan, *arguments)

        monkeypatch.setattr(MemoryPlan, "take", checked)

    return limit


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """A run with two complete checkpoints and one that was not finished."""
    from llmpy.tokenization.base import ByteTokenizer
    from tests.model_files import BYTES, make_model, write_checkpoint

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.toml").write_text("# llmpy train\n")
    ByteTokenizer().save(folder / "tokenizer.json")
    for step in (2, 10, 300):
        made = make_model(BYTES)
        made.parameters.lnfb[:] = step
        write_checkpoint(folder / f"step_{step:08d}", made, sealed=step != 300)
    return folder
