"""Downloads over the loopback address: resumed, checked, and plain about what failed."""

import hashlib
import socket

import pytest

from llmpy.errors import UserError
from llmpy.utils.download import download

CONTENT = bytes(range(256)) * 100
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(file_server):
    file_server.content = CONTENT
    return file_server


def fetch(server, path, **checks):
    return download(server.url, path, description="the file", **({"size": len(CONTENT), "sha256": SHA256} | checks))


def test_a_download_is_made_once(server, tmp_path):
    path = fetch(server, tmp_path / "a" / "file")
    assert path.read_bytes() == CONTENT
    assert fetch(server, path) == path
    assert server.requests == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_connection_that_breaks_is_taken_up_again(server, tmp_path):
    server.cut = 10_000
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT
    assert server.requests == [None, "bytes=10000-", "bytes=20000-"]


def test_a_stopped_download_goes_on_in_the_next_run(server, tmp_path):
    server.cut = 0
    (tmp_path / "file.part").write_bytes(CONTENT[:7000])
    with pytest.raises(UserError, match=r"cannot download the file .*run the command again.*put the file at .*file "):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:7000]
    server.cut = None
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=7000-"


def test_a_server_that_ignores_ranges_sends_all_again(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.part").write_bytes(b"x" * 7000)
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize("have", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_that_is_complete_or_too_long(server, tmp_path, have):
    (tmp_path / "file.part").write_bytes((CONTENT + b"extra")[:have])
    assert fetch(server, tmp_path / "file").read_bytes() == CONTENT


def test_a_changed_file_is_refused_and_removed(server, tmp_path):
    with pytest.raises(UserError, match=r"damaged or has changed: its SHA-256 is .* instead of 0000"):
        fetch(server, tmp_path / "file", sha256="0" * 64)
    with pytest.raises(UserError, match=r"it has 25,600 bytes instead of 5"):
        fetch(server, tmp_path / "file", size=5)
    assert not list(tmp_path.iterdir())


def test_a_file_put_there_by_hand_is_checked_and_kept(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=r"is not the file from .*: it has 25,599 bytes .*; delete it and run again"):
        fetch(server, path)
    assert path.read_bytes() == CONTENT[:-1]
    assert server.requests == []


def test_no_such_file_on_the_server(server, tmp_path):
    with pytest.raises(UserError, match="the server answers 404 Not Found"):
        download(server.url + "x", tmp_path / "file")


def test_nobody_listens(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(UserError, match=r"cannot download file from http.*refused.*put the file at"):
            download(url, tmp_path / "file")


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        fetch(server, tmp_path / "a" / "file")
