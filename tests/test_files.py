"""Files: whole or not at all, explained where the disk refuses, never outside their folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tasks import files
from tasks.errors import StorageError

as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root"
)
as_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    content = os.urandom(files._CHUNK + 12345)
    (tmp_path / "f").write_bytes(content)
    assert files.sha256_of(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_known_file_is_read_again_only_when_its_stat_moved(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    known = files.file_sum(path)
    assert known.size == 3
    forged = files.FileSum("not read", known.size, known.mtime_ns, known.inode)
    assert files.file_sum(path, forged).sha256 == "not read"
    os.utime(path, ns=(0, known.mtime_ns + 1))
    assert files.file_sum(path, forged).sha256 == known.sha256


def test_a_sum_that_was_just_taken_is_not_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("one")
    found = files.file_sum(path)
    files.note_sum(path, files.FileSum("noted", found.size, found.mtime_ns, found.inode))
    assert files.file_sum(path).sha256 == "noted"
    os.utime(path, ns=(0, found.mtime_ns + 1))
    assert files.file_sum(path).sha256 == found.sha256


def test_a_replaced_file_is_seen_though_size_and_time_are_the_same(tmp_path: Path) -> None:
    path, other = tmp_path / "f", tmp_path / "g"
    path.write_text("one")
    known = files.file_sum(path)
    other.write_text("two")
    os.utime(other, ns=(0, known.mtime_ns))
    os.replace(other, path)
    assert files.file_sum(path, known).sha256 != known.sha256


def test_replacing_shows_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    with files.replacing(path) as partial:
        assert partial.parent == path.parent
        partial.write_text("one")
        assert not path.exists()
    with pytest.raises(RuntimeError), files.replacing(path) as partial:
        partial.write_text("two, bro")
        raise RuntimeError
    assert path.read_text() == "one"
    assert os.listdir(path.parent) == ["f"]


def test_what_does_not_verify_does_not_take_the_name(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        raise ValueError(path.read_text())

    path = tmp_path / "f"
    path.write_text("old")
    with pytest.raises(ValueError, match="bad"), files.replacing(path, verify=refuse) as partial:
        partial.write_text("bad")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    with files.replacing(path) as partial:
        partial.mkdir()
        (partial / "f").write_text("x")
        assert not path.exists()
    assert (path / "f").read_text() == "x"


def test_sweep_deletes_only_what_is_unfinished_of_that_name(tmp_path: Path) -> None:
    for name in (".a[1].99.partial", ".a1.99.partial", "a[1]", ".b.99.partial"):
        (tmp_path / name).write_text("")
    (tmp_path / ".a[1].7.partial").mkdir()
    (tmp_path / ".a[1].7.partial" / "f").write_text("")
    files.sweep(tmp_path / "a[1]")
    assert sorted(os.listdir(tmp_path)) == [".a1.99.partial", ".b.99.partial", "a[1]"]


def test_remove_takes_a_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "f").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    files.remove(tmp_path / "link")
    files.remove(tmp_path / "none")
    assert (tmp_path / "folder" / "f").exists()
    files.remove(tmp_path / "folder")
    assert os.listdir(tmp_path) == []


GOOD = ("a", "a/b.c", "a//b", "./a", "a/./b", "...", "a..b", "ä/ö", " a")


@pytest.mark.parametrize("name", GOOD)
def test_names_that_stay_inside(name: str, tmp_path: Path) -> None:
    path = files.inside(tmp_path, name)
    assert tmp_path in path.parents


BAD = (
    "",
    ".",
    "./",
    "..",
    "../a",
    "a/../../b",
    "/a",
    "\\a",
    "a\\..\\..\\b",
    "C:a",
    "C:\\a",
    "a\0b",
)


@pytest.mark.parametrize("name", [*BAD, "//host/share", "a/..", "~/../x"])
def test_names_that_lead_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"out of its folder|names no file"):
        files.inside(tmp_path, name)


@given(st.lists(st.sampled_from([*GOOD, *BAD, "/", "\\", ":", "~"]) | st.text(), max_size=5))
@example(["a", "/..", "/.."])
def test_no_name_leaves_its_folder(parts: list[str]) -> None:
    folder = Path("/some/folder")
    try:
        path = files.inside(folder, "".join(parts))
    except ValueError:
        return
    assert Path(os.path.normpath(path)) == path
    assert folder in path.parents


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "llamake-test", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this machine does not let root mount")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@as_root
def test_a_full_disk_is_explained_and_keeps_the_old_file(small_disk: Path) -> None:
    path = small_disk / "f"
    files.write_text(path, "old")
    with (
        pytest.raises(StorageError, match=r"no space left for .*disk") as full,
        files.storage(small_disk / "not" / "yet"),
    ):
        files.write_text(path, "x" * (1 << 20))
    assert "free on that disk" in full.value.why
    assert path.read_text() == "old"
    assert os.listdir(small_disk) == ["f"]


@as_root
def test_a_read_only_disk_is_explained(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StorageError, match="read-only"), files.storage(small_disk):
        files.write_text(small_disk / "f", "x")


@as_user
def test_a_folder_of_somebody_else_is_explained(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="permission denied"), files.storage(tmp_path):
        files.write_text(tmp_path / "f", "x")


def test_a_file_where_a_folder_should_be_is_explained(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    for path in (tmp_path / "f" / "g", tmp_path / "f" / "g" / "h"):
        with pytest.raises(StorageError, match="a file is in the way"), files.storage(path):
            files.write_text(path, "x")


def test_other_errors_are_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), files.storage(tmp_path):
        (tmp_path / "none").read_text()


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (25_300_000, "25.3 MB"), (4.7e12, "4700.0 GB")],
)
def test_sizes_in_words(size: float, words: str) -> None:
    assert files.human_size(size) == words
