"""The test suite as a task: its environment, and pytest on what was built here."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path

from tasks import files, packages, process
from tasks.errors import ConverterError, LlamakeError
from tasks.layout import Layout, python_of
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step


class TestsFailed(LlamakeError):
    """pytest found failures."""


def environment_step(layout: Layout) -> Step:
    """Install the tests' packages and this project."""
    folder = layout.test_environment
    requirements = layout.requirements("test")

    def make() -> Mapping[str, Json]:
        packages.make_environment(
            folder,
            requirements,
            log=layout.log("test-environment"),
            error=ConverterError,
            options=["--require-hashes"],
            project=layout.root,
        )
        return {}

    return Step(
        "test-environment",
        "install the tests' packages",
        folder=folder,
        key="test-environment",
        parameters={
            "requirements": files.sha256_of(requirements) if requirements.exists() else "",
            "project": files.sha256_of(layout.root / "pyproject.toml"),
            "place": str(layout.root),
            "python": platform.python_version(),
        },
        outputs={"requirements.txt": folder / "requirements.txt"},
        must_exist=(python_of(folder),),
        make=make,
    )


def run_tests(settings: Settings, layout: Layout, programs: Path, converter: Path) -> None:
    """Run pytest on this machine's binaries and converter; `args=` goes to it."""
    argv = [str(python_of(layout.test_environment)), "-m", "pytest"]
    # In one word each: else pytest, which knows them only from conftest.py, looks for tests there.
    argv += [f"--programs={programs}", f"--converter={converter}"]
    argv += [*(["--long"] if settings.long else []), *settings.args]
    child = process.start(argv, cwd=layout.root, stdout=sys.__stdout__, stderr=sys.__stderr__)
    if process.finish(child) and not process.stopping():
        raise TestsFailed("the tests failed", fix="their output is above")
