"""What makes `.venv` valid: its stamp, written last. Standard library only.

    .venv/bin/python -I environment.py CHECK      0 if the environment it runs in can be used

An installation that is killed at any moment leaves no stamp, and the next run starts over.
"""

from __future__ import annotations

import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, *(("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")))
STAMP = os.path.join(VENV, "llamake.stamp")
REQUIREMENTS = os.path.join(ROOT, "requirements", "llamake.txt")
PROJECT = os.path.join(ROOT, "pyproject.toml")

REFUSED = 3
BROKEN = "broken\n"
"""Content of the stamp while an environment is being changed in place."""


def stamp_lines() -> list[str]:
    """What an environment depends on: checkout, interpreter (the running one's), lock, project."""
    import hashlib

    def digest(path: str) -> str:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    implementation = sys.implementation
    abi = (implementation.cache_tag, getattr(implementation, "_multiarch", ""), sys.base_prefix)
    return [
        f"root {ROOT!r}",
        f"python {abi!r}",
        f"requirements {digest(REQUIREMENTS)}",
        f"project {digest(PROJECT)}",
    ]


def read_stamp() -> list[str]:
    """The stamp's lines; none where there is no stamp."""
    try:
        with open(STAMP, encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:
        return []


def write_stamp(text: str) -> None:
    """Replace the stamp as a whole."""
    partial = f"{STAMP}.{os.getpid()}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, STAMP)


def is_current() -> bool:
    """True where the running interpreter's environment is finished and up to date."""
    return read_stamp() == stamp_lines()


def is_complete() -> bool:
    """True where this interpreter has all that `doit` needs from this checkout."""
    from importlib import import_module, metadata

    try:
        import_module("doit")
        commands = metadata.entry_points(group="doit.COMMAND")
        tasks = import_module("tasks").__file__
    except ImportError:
        return False
    here = os.path.join(ROOT, "tasks", "__init__.py")
    return "forget" in commands.names and os.path.realpath(tasks or "") == here


def is_newer_than_project() -> bool:
    """True where the project was installed here after pyproject.toml last changed."""
    from importlib import metadata

    installed = metadata.distribution("llamake").locate_file(
        f"llamake-{metadata.version('llamake')}.dist-info/METADATA"
    )
    return os.path.getmtime(str(installed)) >= os.path.getmtime(PROJECT)


def check(word: str) -> bool:
    """Inside `.venv`: is it `usable`; `installed` also vouches for it, having just made it.

    One without a stamp may be uv's work: it is adopted if nothing is missing.
    """
    if word == "usable" and read_stamp():
        return is_current()
    if is_complete() and (word == "installed" or is_newer_than_project()):
        write_stamp("\n".join(stamp_lines()) + "\n")
        return True
    return False


def base_python() -> str:
    """The interpreter that environments are made of, even where we run in one."""
    return getattr(sys, "_base_executable", "") or sys.executable


def become(argv: list[str]) -> int:
    """Replace this process; Windows has no such thing, so there the exit status is passed on."""
    if os.name != "nt":
        os.execv(argv[0], argv)
    import subprocess

    return subprocess.call(argv)


if __name__ == "__main__":
    sys.exit(not check(sys.argv[1]))
