"""The C++ compiler: the machine's own, or Zig from PyPI where there is none that works."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import BuildError
from tasks.files import remove, replacing, write_text
from tasks.machine import has_xcode_tools
from tasks.packages import explain_pip
from tasks.process import CommandFailed, capture, run

ZIG_REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "zig.txt"
ZIG_TOOLS = ("cc", "c++", "ar", "ranlib")

_PAIRS = (("cc", "c++"), ("gcc", "g++"), ("clang", "clang++"))
_PROGRAM = """\
#include <filesystem>
#include <vector>
int main() { return std::vector<int>{0}.front() + (std::filesystem::path{"x"}.empty() ? 1 : 0); }
"""
_INSTALL = "Debian: apt install g++; macOS: xcode-select --install"


@dataclass(frozen=True)
class Compiler:
    """A C and a C++ compiler; `kind` is "cc" or "zig".

    `chosen_by` is what the user named it by ("CXX"), '' for nothing; `launcher` is `ccache` in
    CXX="ccache g++".
    """

    kind: str
    cc: Path
    cxx: Path
    chosen_by: str = ""
    launcher: Path | None = None

    @property
    def cmake_flags(self) -> tuple[str, ...]:
        """NAME=VALUE for CMake's -D that make it use this compiler."""
        flags = [f"CMAKE_C_COMPILER={self.cc}", f"CMAKE_CXX_COMPILER={self.cxx}"]
        if self.launcher:
            flags += [f"CMAKE_{name}_COMPILER_LAUNCHER={self.launcher}" for name in ("C", "CXX")]
        if self.kind == "zig":
            flags += [f"CMAKE_{tool.upper()}={self.cxx.with_name(tool)}" for tool in ZIG_TOOLS[2:]]
            # Zig brings neither library, and the machine's are not made for it.
            flags += ["GGML_OPENMP=OFF", "LLAMA_OPENSSL=OFF"]
        return tuple(flags)

    @property
    def identity(self) -> str:
        """What changes when the compiler does; found out without running it.

        Its programs' real paths, sizes and times; for Zig, which may not be installed yet, the pin.
        """
        if self.kind == "zig":
            return f"zig\n{ZIG_REQUIREMENTS.read_text(encoding='utf-8')}"
        return f"{_identity(self.cc)}\n{_identity(self.cxx)}"

    def version(self) -> str:
        """The first line of what `c++ --version` prints, '' where it fails."""
        return (capture([str(self.cxx), "--version"]) or "").partition("\n")[0].strip()


def _identity(program: Path) -> str:
    # /usr/bin/c++ is a chain of links, and an upgrade changes only the last one.
    real = program.resolve()
    found = real.stat()
    return f"{real} {found.st_size} {found.st_mtime_ns}"


def find_compiler(env: Mapping[str, str] = os.environ) -> Compiler | None:
    """The compiler CC and CXX name, else the machine's usual one, else None; runs nothing.

    Raises BuildError where CC or CXX names what is not there.
    """
    path = env.get("PATH", os.defpath)
    chosen = {name: _command(name, env[name], path) for name in ("CC", "CXX") if env.get(name)}
    usual = _usual(path)
    if not chosen:
        return Compiler("cc", *usual) if usual else None
    if not usual and len(chosen) == 1:
        [only] = chosen
        raise BuildError(
            f"{only}={env[only]} cannot be used alone",
            "no other compiler was found to go with it",
            "set both CC and CXX",
        )
    cc, cxx = usual or (Path(), Path())
    cc, launcher = chosen.get("CC", (cc, None))
    cxx, cxx_launcher = chosen.get("CXX", (cxx, None))
    return Compiler("cc", cc, cxx, " and ".join(chosen), cxx_launcher or launcher)


def _usual(path: str) -> tuple[Path, Path] | None:
    for names in _PAIRS:
        cc, cxx = (shutil.which(name, path=path) for name in names)
        # A Mac without the Xcode tools has programs of these names that only ask for them.
        hollow = sys.platform == "darwin" and cc == "/usr/bin/" + names[0] and not has_xcode_tools()
        if cc and cxx and not hollow:
            return Path(cc), Path(cxx)
    return None


def _command(variable: str, value: str, path: str) -> tuple[Path, Path | None]:
    """The compiler, and the launcher before it if there is one, that CC or CXX names."""
    words = [value] if Path(value).is_file() else shlex.split(value)
    programs = [shutil.which(word, path=path) for word in words]
    found = [Path(program).absolute() for program in programs if program]
    if len(found) == len(words) in (1, 2):
        return found[-1], found[0] if len(found) == 2 else None
    missing = [word for word, program in zip(words, programs, strict=True) if not program]
    raise BuildError(
        f"{variable}={value} cannot be used",
        f"there is no program {missing[0]}" if missing else "there are too many words",
        f"set {variable} to a compiler, or to a launcher and a compiler (ccache g++), or unset it",
    )


def check_works(compiler: Compiler, scratch: Path) -> None:
    """Compile, link and run a small C++17 program in the folder `scratch`; BuildError if it fails.

    Catches a compiler whose headers or libraries are missing.
    """
    if reason := why_unusable(compiler, scratch):
        by = f"{compiler.chosen_by}: " if compiler.chosen_by else ""
        unset = f"; or unset {compiler.chosen_by}" if compiler.chosen_by else ""
        raise BuildError(
            f"{by}{compiler.cxx} makes no working C++17 program",
            reason,
            f"install another compiler ({_INSTALL}){unset}",
        )


def why_unusable(compiler: Compiler, scratch: Path) -> str:
    """The compiler's first error on a small C++17 program, made in `scratch`; '' if it works."""
    scratch.mkdir(parents=True, exist_ok=True)
    source, program, log = (scratch / f"probe{suffix}" for suffix in (".cpp", ".out", ".log"))
    write_text(source, _PROGRAM)
    try:
        run([str(compiler.cxx), "-std=c++17", str(source), "-o", str(program)], log=log)
        run([str(program)], log=log)
    except CommandFailed as failed:
        errors = [line.strip() for line in failed.tail if "error" in line]
        return errors[0] if errors else str(failed)
    except OSError as error:
        return str(error)
    finally:
        for path in (source, program, log):
            remove(path)
    return ""


def zig_compiler(folder: Path) -> Compiler:
    """The compiler that `install_zig` puts into `folder`."""
    return Compiler("zig", folder / "cc", folder / "c++")


def install_zig(folder: Path, requirements: Path, log: Path) -> None:
    """Replace `folder` by the pinned, hash-checked Zig and the scripts cc, c++, ar, ranlib.

    Raises BuildError where pip fails.
    """
    with replacing(folder) as partial:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "install"]
        checks = ["--no-deps", "--no-compile", "--require-hashes", "--only-binary", ":all:"]
        try:
            run([*pip, *checks, "--target", str(partial), "-r", str(requirements)], log=log)
        except CommandFailed as failed:
            raise explain_pip(failed.tail, log, BuildError) from None
        for tool in ZIG_TOOLS:
            write_text(partial / tool, _script(tool), mode=0o755)
        # Last, as the proof that nothing is missing.
        write_text(partial / "requirements.txt", requirements.read_text(encoding="utf-8"))
        remove(folder)


def _script(tool: str) -> str:
    # Found by $0, since the folder is yet to be renamed and its name may hold any character.
    # Zig's caches would go to the user's home and to the working directory.
    return (
        "#!/bin/sh\n"
        'here="${0%/*}"\n'
        'export ZIG_GLOBAL_CACHE_DIR="$here/cache" ZIG_LOCAL_CACHE_DIR="$here/cache"\n'
        f'exec "$here/ziglang/zig" {tool} "$@"\n'
    )
