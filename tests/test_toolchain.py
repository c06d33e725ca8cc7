"""The compiler: finding the machine's own, knowing a broken one, and Zig for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tasks.errors import BuildError
from tasks.toolchain import (
    ZIG_REQUIREMENTS,
    Compiler,
    check_works,
    find_compiler,
    install_zig,
    why_unusable,
    zig_compiler,
)

needs_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
posix = pytest.mark.skipif(os.name == "nt", reason="nothing is compiled on Windows")
pytestmark = posix


def script(path: Path, body: str = "exit 1") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_no_compiler_is_none(tmp_path: Path) -> None:
    assert find_compiler({"PATH": str(tmp_path)}) is None


def test_a_c_compiler_alone_is_none(tmp_path: Path) -> None:
    script(tmp_path / "cc")
    script(tmp_path / "g++")
    assert find_compiler({"PATH": str(tmp_path)}) is None


@pytest.mark.parametrize("names", [("cc", "c++"), ("gcc", "g++"), ("clang", "clang++")])
def test_the_usual_pairs_are_found(tmp_path: Path, names: tuple[str, str]) -> None:
    cc, cxx = (script(tmp_path / name) for name in names)
    assert find_compiler({"PATH": str(tmp_path)}) == Compiler("cc", cc, cxx)


def test_cc_and_cxx_are_honoured(tmp_path: Path) -> None:
    for name in ("cc", "c++"):
        script(tmp_path / "bin" / name)
    mine = script(tmp_path / "my compilers" / "cxx 14")
    env = {"PATH": str(tmp_path / "bin"), "CXX": str(mine)}
    assert find_compiler(env) == Compiler("cc", tmp_path / "bin" / "cc", mine, "CXX")
    both = find_compiler({"PATH": "", "CC": str(mine), "CXX": str(mine)})
    assert both == Compiler("cc", mine, mine, "CC and CXX")


def test_a_launcher_before_the_compiler(tmp_path: Path) -> None:
    for name in ("cc", "c++", "g++-14", "ccache"):
        script(tmp_path / name)
    found = find_compiler({"PATH": str(tmp_path), "CXX": "ccache g++-14"})
    assert found is not None
    assert (found.cxx, found.launcher) == (tmp_path / "g++-14", tmp_path / "ccache")
    assert f"CMAKE_CXX_COMPILER_LAUNCHER={tmp_path / 'ccache'}" in found.cmake_flags


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("CC", "no-such-cc", "there is no program no-such-cc"),
        ("CXX", "/no/such/c++", "there is no program /no/such/c++"),
        ("CXX", "ccache c++", "there is no program ccache"),
        ("CXX", "cc cc cc", "too many words"),
    ],
)
def test_a_named_compiler_that_is_not_there_is_an_error(
    tmp_path: Path, variable: str, value: str, why: str
) -> None:
    for name in ("cc", "c++"):
        script(tmp_path / name)
    with pytest.raises(BuildError) as caught:
        find_compiler({"PATH": str(tmp_path), variable: value})
    assert caught.value.what == f"{variable}={value} cannot be used"
    assert why in caught.value.why


def test_cxx_without_any_c_compiler_is_an_error(tmp_path: Path) -> None:
    mine = script(tmp_path / "mine")
    with pytest.raises(BuildError, match="set both CC and CXX"):
        find_compiler({"PATH": str(tmp_path), "CXX": str(mine)})


def test_identity_follows_links_and_runs_nothing(tmp_path: Path) -> None:
    real = script(tmp_path / "g++-12", f"touch '{tmp_path}/ran'")
    for name in ("cc", "c++"):
        (tmp_path / name).symlink_to(real)
    compiler = find_compiler({"PATH": str(tmp_path)})
    assert compiler is not None
    before = compiler.identity
    assert before == compiler.identity
    script(real, f"touch '{tmp_path}/ran' # upgraded")
    assert compiler.identity != before
    assert not (tmp_path / "ran").exists()


@needs_compiler
def test_the_machines_compiler_works(tmp_path: Path) -> None:
    compiler = find_compiler({"PATH": os.environ["PATH"]})
    assert compiler is not None
    check_works(compiler, tmp_path / "a b")
    assert list((tmp_path / "a b").iterdir()) == []
    assert re.search(r"\d+\.\d+", compiler.version())


@needs_compiler
def test_a_compiler_without_its_cxx_headers_is_told(tmp_path: Path) -> None:
    broken = script(tmp_path / "c++", f'exec "{shutil.which("c++")}" -nostdinc++ "$@"')
    compiler = find_compiler({"PATH": os.environ["PATH"], "CXX": str(broken)})
    assert compiler is not None
    with pytest.raises(BuildError) as caught:
        check_works(compiler, tmp_path / "scratch")
    assert "filesystem" in caught.value.why
    assert caught.value.what.startswith("CXX: ")
    assert "unset CXX" in caught.value.fix


def test_programs_that_do_not_run_count_as_broken(tmp_path: Path) -> None:
    # what a cross compiler, or a C++ library that cannot be loaded, looks like
    body = 'for out; do :; done; printf "#!/bin/sh\nexit 9\n" > "$out"; chmod +x "$out"'
    cxx = script(tmp_path / "c++", body)
    compiler = Compiler("cc", cxx, cxx)
    assert "exit code 9" in why_unusable(compiler, tmp_path / "scratch")
    with pytest.raises(BuildError, match=r"apt install g\+\+"):
        check_works(compiler, tmp_path / "scratch")


@pytest.fixture(scope="session")
def zig(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real Zig from the package registry, in a folder with a space."""
    base = tmp_path_factory.mktemp("zig")
    install_zig(base / "the zig", ZIG_REQUIREMENTS, base / "install.log")
    return base / "the zig"


def test_zig_compiles_cxx17_that_runs(zig: Path, tmp_path: Path) -> None:
    compiler = zig_compiler(zig)
    assert why_unusable(compiler, tmp_path / "scratch") == ""
    assert compiler.version().startswith("clang version")
    assert (zig / "requirements.txt").read_text() == ZIG_REQUIREMENTS.read_text()
    assert [path.name for path in zig.parent.iterdir() if path.name.startswith(".")] == []


def test_zig_compiles_for_this_cpu_and_writes_only_below_its_folder(
    zig: Path, tmp_path: Path
) -> None:
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    (work / "a.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(
        [zig / "cc", "-O2", "-march=native", "a.c", "-o", "a"],
        cwd=work,
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        check=True,
    )
    subprocess.run([work / "a"], check=True)
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in work.iterdir()) == ["a", "a.c"]
    assert (zig / "cache").is_dir()


def test_zig_archives_a_static_library(zig: Path, tmp_path: Path) -> None:
    (tmp_path / "answer.c").write_text("int answer(void) { return 42; }\n")
    (tmp_path / "main.c").write_text(
        "int answer(void);\nint main(void) { return answer() - 42; }\n"
    )
    tools = dict(flag.split("=", 1) for flag in zig_compiler(zig).cmake_flags)
    for argv in (
        [tools["CMAKE_C_COMPILER"], "-O2", "-c", "answer.c"],
        [tools["CMAKE_AR"], "qc", "libanswer.a", "answer.o"],
        [tools["CMAKE_RANLIB"], "libanswer.a"],
        [tools["CMAKE_C_COMPILER"], "-O2", "main.c", "libanswer.a", "-o", "main"],
    ):
        subprocess.run(argv, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)


def test_a_failed_install_keeps_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "zig"
    folder.mkdir()
    (folder / "cc").touch()
    wanted = tmp_path / "wanted.txt"
    wanted.write_text(f"ziglang==99.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(BuildError):
        install_zig(folder, wanted, tmp_path / "log")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "wanted.txt", "zig"]
    assert [path.name for path in folder.iterdir()] == ["cc"]
