"""The converter's Python environment: transformers and torch, apart from the project's own."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tasks import console, files, packages
from tasks.errors import ConverterError
from tasks.layout import Layout, python_of
from tasks.state import Json
from tasks.step import Step
from tasks.vendor import Source

_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""Torch without CUDA: elsewhere on Linux it brings gigabytes that converting never uses."""


def requirements_of(source: Source, layout: Layout) -> Path:
    """The packages to install: our pinned ones, or those that an own tree asks for."""
    if source.pin is None and source.converter_requirements.exists():
        return source.converter_requirements
    return layout.requirements("converter")


def environment(source: Source, layout: Layout) -> Path:
    """The environment's folder; an own tree's packages get one of their own."""
    requirements = requirements_of(source, layout)
    own = requirements != layout.requirements("converter")
    return layout.converter(files.sha256_of(requirements)[:8] if own else "")


def converter_step(source: Source, layout: Layout) -> Step:
    """Make the environment; it depends on the packages asked for and on this Python."""
    requirements = requirements_of(source, layout)
    folder = environment(source, layout)
    return Step(
        "converter",
        "install the converter's packages",
        folder=folder,
        key="converter",
        parameters={
            "requirements": files.sha256_of(requirements),
            "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        },
        outputs={"requirements.txt": folder / "requirements.txt"},
        must_exist=(python_of(folder),),
        make=lambda: _install(folder, requirements, layout.log("converter")),
    )


def _install(folder: Path, requirements: Path, log: Path) -> Mapping[str, Json]:
    console.say("converter", f"installing {requirements.name}")
    files.remove(log)
    # A mirror that cannot be reached must not cost minutes: pip then takes what others have.
    options = ["--retries", "1"]
    if sys.platform == "linux":
        options += ["--extra-index-url", _TORCH_CPU_INDEX]
    packages.make_environment(folder, requirements, log=log, error=ConverterError, options=options)
    return {"python": sys.version.split()[0]}
