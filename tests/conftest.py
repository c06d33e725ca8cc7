"""What every test may use: the programs and the converter that `./doitw test` built."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.layout import python_of

pytest_plugins = ["graph"]

ROOT = Path(__file__).parent.parent

if hasattr(signal, "SIGHUP"):
    # Under nohup it is ignored, which every process that is tested here would inherit.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--programs", type=Path, help="folder of llama-server and llama-quantize")
    parser.addoption("--converter", type=Path, help="the converter's Python environment")
    parser.addoption("--long", action="store_true", help="run the long tests, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: ./doitw test long=yes"))


def missing(what: str, how: str) -> None:
    """Skip on a user's machine, fail in CI, where `.ci/run` installs everything."""
    reason = f"{what} is missing: {how}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_bins(request: pytest.FixtureRequest) -> Path:
    """Folder of the compiled llama-server and llama-quantize."""
    folder = request.config.getoption("--programs")
    if folder is None:
        pytest.skip("no programs: run ./doitw test")
    assert isinstance(folder, Path)
    return folder


@pytest.fixture(scope="session")
def converter_python(request: pytest.FixtureRequest) -> Path:
    """Interpreter of the converter's environment."""
    folder = request.config.getoption("--converter")
    if folder is None:
        pytest.skip("no converter environment: run ./doitw test")
    return python_of(folder)


@pytest.fixture(scope="session")
def vendor_tree() -> Path:
    """The unpacked pinned llama.cpp source, with the prebuilt Windows binaries in .prebuilt/."""
    tree = ROOT / "vendor" / "llama.cpp"
    if not tree.exists():
        pytest.skip("no llama.cpp source: run ./doitw test")
    return tree


@pytest.fixture(scope="session")
def demo_gguf(
    real_bins: Path, converter_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The demo model as model.f16.gguf, made by the real graph in a models folder of its own."""
    models = tmp_path_factory.mktemp("demo-models")
    doit(
        "convert",
        f"models-dir={models}",
        f"bins-dir={converter_python.parents[2]}",
        f"logs-dir={models / 'logs'}",
    )
    return next(models.glob("gguf/demo__*/model.f16.gguf"))


def doit_argv(*words: str, dodo: Path = ROOT / "dodo.py") -> list[str]:
    """The command line of doit on a dodo.py, as ./doitw ends in it."""
    return [sys.executable, "-m", "doit", "-f", str(dodo), *words]


def doit(*words: str, dodo: Path = ROOT / "dodo.py", status: int = 0) -> str:
    """Run doit to its end; its output. Fails where the exit code is another than `status`."""
    done = subprocess.run(
        doit_argv(*words, dodo=dodo),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == status, f"exit code {done.returncode}, not {status}\n{done.stdout}"
    return done.stdout
