import errno
import os
import stat
from pathlib import Path

import pytest

from stepladder.errors import OutputError
from stepladder.files import write_atomically


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


def test_output_that_appears_meanwhile_stays(tmp_path):
    path = tmp_path / "a.txt"

    def write(temporary):
        temporary.write_text("late")
        path.write_text("first")

    with pytest.raises(OutputError, match="exists already"):
        write_atomically(path, write, force=False)
    assert path.read_text() == "first"
    assert left_over(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_half_written(tmp_path, force):
    path = tmp_path / "a.bin"
    if force:
        path.write_text("old")

    def write(temporary):
        temporary.write_bytes(b"half")
        Path("/dev/full").write_bytes(b"the other half")

    with pytest.raises(OutputError, match=r"Cannot write .*a\.bin: No space left on device\. Free some space; nothing"):
        write_atomically(path, write, force=force)
    assert left_over(tmp_path) == (["a.bin"] if force else [])
    assert not force or path.read_text() == "old"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def write(temporary):
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", write, force=False)
    assert left_over(tmp_path) == []


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def unsupported(self, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", unsupported)
    path = tmp_path / "a.txt"
    write_atomically(path, lambda temporary: temporary.write_text("first"), force=False)
    with pytest.raises(OutputError, match="exists already"):
        write_atomically(path, lambda temporary: temporary.write_text("second"), force=False)

    def late(temporary):
        temporary.write_text("late")
        path.with_name("b.txt").write_text("first")

    with pytest.raises(OutputError, match="exists already"):
        write_atomically(tmp_path / "b.txt", late, force=False)
    assert (path.read_text(), left_over(tmp_path)) == ("first", ["a.txt", "b.txt"])


def test_places_that_cannot_hold_a_file_are_refused(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")

    def write(temporary):
        temporary.touch()

    for path, text in [
        (tmp_path, "it is a folder. Name a file."),
        (tmp_path / "pipe", "it is no regular file. Name another place."),
        (tmp_path / "file" / "a.png", "Name another place"),
        (tmp_path / ("a" * 300), "File name too long. Name another place"),
        (tmp_path / "a\0b", "embedded null"),
    ]:
        with pytest.raises(OutputError) as caught:
            write_atomically(path, write, force=True)
        assert text in str(caught.value)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_link_keeps_pointing_at_the_new_content(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    write_atomically(tmp_path / "link.txt", lambda temporary: temporary.write_text("new"), force=True)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "new"


def test_a_written_file_has_the_permissions_of_an_ordinary_one(tmp_path):
    def write(temporary):
        temporary.write_text("x")
        temporary.chmod(0o600)

    (tmp_path / "ordinary").touch()
    write_atomically(tmp_path / "a", write, force=False)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "ordinary").stat().st_mode
