"""Writes are complete or absent, whatever interrupts them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from moegate.lab.data import cache

FILES = {"a.bin": b"first" * 1000, "b.bin": b"", "c.bin": b"\0" * 7}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Interrupted(BaseException):
    """Like KeyboardInterrupt: no `except Exception` catches it."""


def interrupt_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Let the first writes reach the disk, then interrupt."""
    done, fsync = [], os.fsync

    def counted(descriptor: int) -> None:
        if len(done) == calls:
            raise Interrupted
        done.append(descriptor)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", counted)


def test_a_folder_appears_with_all_its_files(tmp_path: Path) -> None:
    cache.write_folder(tmp_path / "deep" / "er", FILES)
    assert contents(tmp_path / "deep" / "er") == FILES
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["er"]


def test_an_existing_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    cache.write_folder(tmp_path / "x", {"old": b"old", "a.bin": b"old"})
    cache.write_folder(tmp_path / "x", FILES)
    assert contents(tmp_path / "x") == FILES


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_an_interrupted_folder_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    interrupt_after(monkeypatch, calls)
    with pytest.raises(Interrupted):
        cache.write_folder(tmp_path / "x", FILES)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.write_file(tmp_path / "x", b"old")
    interrupt_after(monkeypatch, 0)
    with pytest.raises(Interrupted):
        cache.write_file(tmp_path / "x", b"new" * 1000)
    assert contents(tmp_path) == {"x": b"old"}


def test_a_killed_process_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    """The process is killed with the first file on disk and the second not begun."""
    script = f"""
        import os, signal
        from pathlib import Path
        from moegate.lab.data import cache
        fsync = os.fsync
        def kill(descriptor):
            fsync(descriptor)
            os.kill(os.getpid(), signal.SIGKILL)
        os.fsync = kill
        cache.write_folder(Path({str(tmp_path / "x")!r}), {{"a": b"text", "b": b"text"}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    (leftover,) = tmp_path.iterdir()
    cache.write_folder(tmp_path / "x", FILES)
    assert contents(tmp_path / "x") == FILES
    assert leftover.exists()  # young: it might belong to a process that is still writing

    long_ago = time.time() - 2 * 3600
    os.utime(leftover, (long_ago, long_ago))
    cache.write_folder(tmp_path / "y", FILES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_losing_the_race_to_another_process_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process's folder appears between the removal of the old one and the rename."""
    folder = tmp_path / "x"
    remove = cache.shutil.rmtree

    def remove_then_lose(path: Path, **options: bool) -> None:
        remove(path, **options)
        if path == folder:
            folder.mkdir()
            (folder / "theirs").write_bytes(b"complete")

    monkeypatch.setattr(cache.shutil, "rmtree", remove_then_lose)
    cache.write_folder(folder, FILES)
    monkeypatch.undo()
    assert contents(folder) == {"theirs": b"complete"}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failing_rename_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="No space"):
        cache.write_folder(tmp_path / "x", FILES)
    assert list(tmp_path.iterdir()) == []


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data[:3])))
    cache.write_file(tmp_path / "x", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"MOEGATE_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"MOEGATE_CACHE": "~/mine"}, Path("/home/me/mine")),
        ({"MOEGATE_CACHE": "relative"}, Path.cwd() / "relative"),
        ({"MOEGATE_CACHE": "", "XDG_CACHE_HOME": "/x"}, Path("/x/moegate")),
        ({"XDG_CACHE_HOME": "relative"}, Path("/home/me/.cache/moegate")),
        ({"XDG_CACHE_HOME": ""}, Path("/home/me/.cache/moegate")),
        ({}, Path("/home/me/.cache/moegate")),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], expected: Path) -> None:
    for name in ("MOEGATE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache.cache_root() == expected
