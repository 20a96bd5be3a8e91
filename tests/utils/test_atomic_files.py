"""Files appear whole or not at all, and what fails says so in one line."""

import errno
import stat
from pathlib import Path

import pytest

from llmpy.errors import UserError
from llmpy.utils import atomic_files


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    with atomic_files.write_atomic(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_inside_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_half_way():
        with atomic_files.write_atomic(path) as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    path = tmp_path / "file"
    full = OSError(errno.ENOSPC, "No space left on device")
    with (
        pytest.raises(UserError, match=r"cannot write .*file: No space left on device: free some"),
        atomic_files.write_atomic(path),
    ):
        raise full
    assert not list(tmp_path.iterdir())


def test_an_error_about_another_file_is_not_taken_for_ours(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_files.write_atomic(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="cannot write"), atomic_files.write_atomic(tmp_path / "a" / "b"):
        pass
    with pytest.raises(UserError, match="cannot write"), atomic_files.write_atomic(tmp_path):
        pass


def test_permissions_are_those_of_any_new_file(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic_files.write_text_atomic(tmp_path / "ours", "Grüße\n")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
    assert (tmp_path / "ours").read_bytes() == "Grüße\n".encode()


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert atomic_files.sha256_of(tmp_path / "abc").startswith("ba7816bf8f01cfea")


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("LLMPY_CACHE_DIR", str(tmp_path / "mine"))
    assert atomic_files.cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("LLMPY_CACHE_DIR")
    monkeypatch.setattr(atomic_files.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert atomic_files.cache_dir() == tmp_path / "xdg" / "llmpy"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert atomic_files.cache_dir() == Path.home() / ".cache" / "llmpy"
    monkeypatch.setattr(atomic_files.sys, "platform", "darwin")
    assert atomic_files.cache_dir() == Path.home() / "Library" / "Caches" / "llmpy"
