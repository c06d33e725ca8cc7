"""The build's pure parts: what CMake is told, what a failed log says, what is compiled anew."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks import machine
from tasks.build import _prepare_tree, choose, configure_flags, first_error, platform_of, steps
from tasks.device import DeviceChoice
from tasks.errors import BuildError
from tasks.layout import Layout
from tasks.settings import Settings
from tasks.step import Step
from tasks.toolchain import Compiler
from tasks.vendor import Pin, Source

PIN = Pin("pkg", "1.0", "ab" * 32, 10605)
GCC = Compiler("cc", Path("/usr/bin/cc"), Path("/usr/bin/c++"))
CPU = DeviceChoice("cpu", "no GPU", ())
CUDA = DeviceChoice("cuda", "asked for", ("GGML_CUDA=ON",))


def flags(pin: Pin | None = PIN, choice: DeviceChoice = CPU) -> list[str]:
    return list(configure_flags(Source(Path("/src"), pin), choice, GCC))


def test_the_build_is_self_contained_and_for_this_machine() -> None:
    assert {"-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DCMAKE_BUILD_TYPE=Release"} <= set(
        flags()
    )
    assert f"-DCMAKE_CXX_COMPILER={GCC.cxx}" in flags()
    assert all(flag.startswith("-D") and "=" in flag for flag in flags())


def test_a_pinned_build_names_itself_and_never_asks_git() -> None:
    assert {"-DLLAMA_BUILD_NUMBER=10605", "-DLLAMA_BUILD_COMMIT=pkg-1.0"} <= set(flags())
    assert not [flag for flag in flags(pin=None) if "LLAMA_BUILD_NUMBER" in flag]


def test_the_device_decides_flags() -> None:
    assert set(flags(choice=CUDA)) - set(flags()) == {"-DGGML_CUDA=ON"}


def test_binaries_do_not_name_the_path_they_were_built_in() -> None:
    assert "-DCMAKE_CXX_FLAGS=-ffile-prefix-map=/src=llama.cpp" in flags()


@pytest.mark.parametrize(
    "line",
    [
        "/src/a.cpp:12:5: error: 'x' was not declared in this scope",
        "a.cpp:1:10: fatal error: missing.h: No such file or directory",
        "c++: fatal error: Killed signal terminated program cc1plus",
        "CMake Error at CMakeLists.txt:3 (message):",
        "a.cpp:(.text+0x5): undefined reference to `f'",
        "ninja: error: loading 'build.ninja': No such file or directory",
        "/usr/bin/ld: cannot find -lcuda",
        "error: linker command failed",
    ],
)
def test_the_first_error_of_a_log(line: str) -> None:
    log = [
        "-- Performing Test HAVE_ERROR: ok",
        "[1/3] c++ -Werror -o error.o error.cpp",
        "warning: something",
        f"  {line}  " if line.startswith("a") else line,
        "b.cpp:1:1: error: a later one",
        "ninja: build stopped: subcommand failed.",
    ]
    assert first_error(log) == line


def test_a_log_without_an_error_ends_in_what_it_said_last() -> None:
    assert first_error(["one", "two", "", " "]) == "two"
    assert first_error([]) == ""


def test_a_build_tree_is_kept_only_where_it_was_made_alike(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    _prepare_tree(tree, {"flags": ["-a"]})
    (tree / "a.o").write_text("")
    _prepare_tree(tree, {"flags": ["-a"]})
    assert (tree / "a.o").exists()
    _prepare_tree(tree, {"flags": ["-b"]})
    assert os.listdir(tree) == ["llamake.json"]
    (tree / "a.o").write_text("")
    (tree / "llamake.json").unlink()
    _prepare_tree(tree, {"flags": ["-b"]})
    assert os.listdir(tree) == ["llamake.json"]


def build_step(tmp_path: Path, settings: Settings) -> tuple[Step, Step]:
    layout = Layout.of(tmp_path, settings)
    source = Source(tmp_path / "src", PIN)
    vendor = Step("vendor", "", skip="x")
    return steps(settings, layout, source, vendor, choose(settings))


def test_windows_binaries_are_unpacked_wherever_we_are(tmp_path: Path) -> None:
    toolchain, build = build_step(tmp_path, Settings(platform="windows-x64"))
    assert toolchain.skip
    assert build.folder == tmp_path / "bins" / "windows-x64"
    assert sorted(build.outputs) == ["llama-quantize.exe", "llama-server.exe"]
    assert not toolchain.why_pending()
    assert build.why_pending() == "not made yet"


def test_other_platforms_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="binaries for macos-arm64 cannot be made here"):
        build_step(tmp_path, Settings(platform="macos-arm64", device="cpu"))
    with pytest.raises(BuildError, match="device=cuda cannot be had on Windows"):
        choose(Settings(platform="windows-x64", device="cuda"))
    assert platform_of(Settings()) == machine.platform_name()
