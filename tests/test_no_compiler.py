"""A machine without a C++ compiler: Zig is installed by itself, and compiles llama.cpp."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, doit_argv
from graph import TINY, Project
from tiny.checkpoint import make_checkpoint

_COMPILER = re.compile(r"(^|-)(cc|c\+\+|gcc|g\+\+|clang|clang\+\+|c89|c99)(-[\d.]+)?$")


@pytest.fixture
def without_compilers(tmp_path: Path) -> str:
    """A PATH with every program of this machine but its compilers."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            link = folder / program.name
            if not _COMPILER.search(program.name) and not link.is_symlink():
                link.symlink_to(program)
    assert not any(shutil.which(name, path=str(folder)) for name in ("c++", "g++", "clang++"))
    return str(folder)


@pytest.mark.long
@pytest.mark.parametrize("which", ["tiny", "pinned"])
def test_zig_is_installed_and_compiles_a_server_that_serves(
    tmp_path: Path, without_compilers: str, which: str
) -> None:
    tiny = which == "tiny"
    tree = shutil.copytree(TINY, tmp_path / "tiny") if tiny else None
    checkpoint = make_checkpoint(tmp_path / "m") if tiny else ROOT / "models" / "demo"
    project = Project(tmp_path, tmp_path / "bins", tree)
    model = f"model={checkpoint}"
    places = [f"{kind}-dir={tmp_path / kind}" for kind in ("bins", "models", "logs")]
    subprocess.run(
        doit_argv("prepare", model, *places, *([f"llama-cpp={tree}"] if tree else [])),
        env={**os.environ, "PATH": without_compilers},
        timeout=7200,
        check=True,
    )
    assert (tmp_path / "bins" / "zig" / "c++").exists()
    run = project.start("serve", model, "port=auto", env={"PATH": without_compilers})
    run.wait_for("ready in ")
    assert not re.search(r"^(toolchain|build) +(install|compile)", run.output, re.M)
    run.stop()
