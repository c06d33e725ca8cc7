"""Projects for tests of the graph: the real doit on the tiny llama.cpp, in folders of their own.

conftest.py names this as a plugin, so its fixtures need no import.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import ROOT, doit_argv
from tiny.checkpoint import make_checkpoint

TINY = Path(__file__).parent / "tiny" / "llama.cpp"
HANG_S = 120
"""After this long a run is taken to hang; nothing here takes a tenth of it."""


class Run:
    """A doit that runs beside the test."""

    def __init__(self, argv: list[str], folder: Path, env: Mapping[str, str], log: Path) -> None:
        self._log = log
        with open(log, "wb") as stdout:
            self.process = subprocess.Popen(
                argv,
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it said so far."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait for something that can only happen while this runs."""
        deadline = time.monotonic() + HANG_S
        while not reached():
            assert self.process.poll() is None, f"it ended before\n{self.output}"
            assert time.monotonic() < deadline, f"it hangs\n{self.output}"
            time.sleep(0.01)

    def wait_for(self, text: str) -> None:
        """Wait until it says `text`."""
        self.wait_until(lambda: text in self.output)

    def field(self, label: str) -> str:
        """A line of the server's summary; waits for it."""
        self.wait_for("ready in ")
        lines = [line.split(None, 1) for line in self.output.splitlines()]
        return next(words[1] for words in lines if len(words) == 2 and words[0] == label)

    @property
    def url(self) -> str:
        """The API's address, once the server is healthy."""
        return self.field("API").removesuffix("/v1")

    def children(self) -> list[psutil.Process]:
        """The processes it started, but for the guard that survives it to end the others."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in found if not any("guard.py" in w for w in child.cmdline())]

    def kill_group(self) -> None:
        """SIGKILL for the whole process group, as an impatient user or the OOM killer does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(HANG_S)

    def end(self, status: int = 0) -> str:
        """Wait for its end; its output. Fails where the exit code is another."""
        try:
            found = self.process.wait(HANG_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs\n{self.output}")
        assert found == status, f"exit code {found}, not {status}\n{self.output}"
        return self.output

    def stop(self, number: int = signal.SIGTERM, status: int = 0) -> str:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.end(status)


class Gate:
    """A pipe at which a tiny program waits until the test opens it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._writer = -1

    def reached(self, run: Run) -> None:
        """Wait until a program stands at the gate; it stays there until `open`."""

        def somebody_reads() -> bool:
            with contextlib.suppress(OSError):
                self._writer = os.open(self.path, os.O_WRONLY | os.O_NONBLOCK)
            return self._writer >= 0

        run.wait_until(somebody_reads)

    def open(self) -> None:
        """Let it go on."""
        os.close(self._writer)
        self._writer = -1


@dataclass
class Project:
    """A folder in which a user stands, with models and logs of its own.

    `tree` is given as llama-cpp=, None leaves that to the project of `dodo`.
    """

    folder: Path
    bins: Path
    tree: Path | None
    dodo: Path = ROOT / "dodo.py"
    env: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    @property
    def models(self) -> Path:
        return self.folder / "models"

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> Run:
        """Start doit with these words, this project's folders, and `env` besides the rest."""
        places = {"bins-dir": self.bins, "models-dir": self.models, "logs-dir": self.logs}
        if self.tree:
            places["llama-cpp"] = self.tree
        given = {word.split("=")[0] for word in words}
        rest = [f"{key}={path}" for key, path in places.items() if key not in given]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LLAMA_SERVER_")}
        log = self.folder / f".run-{len(self.runs)}.log"
        argv = doit_argv(*words, *rest, dodo=self.dodo)
        run = Run(argv, self.folder, {**clean, **self.env, **(env or {})}, log)
        self.runs.append(run)
        return run

    def doit(self, *words: str, status: int = 0, env: Mapping[str, str] | None = None) -> str:
        """Run doit to its end; its output. Fails where the exit code is not `status`."""
        return self.start(*words, env=env).end(status)

    def why(self, *words: str) -> dict[str, str]:
        """What `doit list` says: why each step is pending, empty where it is fresh.

        Sub-tasks of the model in effect go by their step's name alone.
        """
        rows = [line.split(None, 2) for line in self.doit("list", *words).splitlines()[1:]]
        return {
            name.split(":")[0]: why if status == "pending" else "" for name, status, why in rows
        }

    def pending(self, *words: str) -> set[str]:
        """The steps that `doit list` shows as pending, but for serve, which always is."""
        return {name for name, why in self.why(*words).items() if why} - {"serve"}

    def files(self) -> dict[str, tuple[int, int]]:
        """Inode and mtime of each GGUF that was made."""
        found = self.models.glob("gguf/*/*.gguf")
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}

    def gguf(self, quantization: str = "q4_k_m", model: str = "m") -> Path:
        """The one file of a model and type."""
        (path,) = self.models.glob(f"gguf/{model}__*/model.{quantization}.gguf")
        return path

    def state(self, model: str = "m") -> dict[str, Any]:
        """A model's `.state.json`."""
        (path,) = self.models.glob(f"gguf/{model}__*/.state.json")
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def checkpoint(self, name: str = "m", gates: Mapping[str, Gate] | None = None) -> Path:
        """A checkpoint in this folder; its tools wait at the gates (`convert`, `serve`, …)."""
        folder = make_checkpoint(self.folder / name)
        edit_config(folder, {f"tiny.gate.{k}": str(gate.path) for k, gate in (gates or {}).items()})
        return folder

    def close(self) -> None:
        """End what still runs, with everything that it started."""
        for run in self.runs:
            if run.process.poll() is None:
                children = run.children()
                run.kill_group()
                gone(children)


def edit_config(checkpoint: Path, changes: Mapping[str, object]) -> None:
    """Change keys of a checkpoint's config.json."""
    path = checkpoint / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}), encoding="utf-8")


def flip_byte(path: Path) -> None:
    """Change a file's last byte, and nothing else of it."""
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def gone(processes: list[psutil.Process]) -> None:
    """Wait until none of these processes runs; nobody may be there to collect an orphan's end."""
    deadline = time.monotonic() + HANG_S
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while process.status() != psutil.STATUS_ZOMBIE:
                assert time.monotonic() < deadline, f"{process} was left behind"
                time.sleep(0.01)


@dataclass(frozen=True)
class Tools:
    """A tiny llama.cpp with what was built of it, for all tests that leave both alone."""

    tree: Path
    bins: Path


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Tools:
    """Compile once for all tests."""
    folder = tmp_path_factory.mktemp("tools")
    made = Tools(folder / "llama.cpp", folder / "bins")
    shutil.copytree(TINY, made.tree)
    Project(folder, made.bins, made.tree).doit("build", "converter")
    return made


@pytest.fixture
def project(tools: Tools, tmp_path: Path) -> Iterator[Project]:
    """A project in which the tools are built and no model was made; they must not be changed."""
    made = Project(tmp_path, tools.bins, tools.tree)
    yield made
    made.close()


@pytest.fixture
def prepared(project: Project) -> Project:
    """A project with the model `m`, converted and quantized to the default type."""
    project.checkpoint()
    project.doit("prepare", "model=m")
    return project


@pytest.fixture(scope="session")
def ready(tools: Tools, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """As `prepared`, for all tests that make nothing and change nothing in it."""
    made = Project(tmp_path_factory.mktemp("ready"), tools.bins, tools.tree)
    made.checkpoint()
    made.doit("prepare", "model=m")
    yield made
    made.close()


def own_tools(tools: Tools, folder: Path) -> Project:
    """A project with a llama.cpp tree and bins of its own, in which nothing is compiled yet."""
    shutil.copytree(TINY, folder / "llama.cpp")
    project = Project(folder, folder / "bins", folder / "llama.cpp")
    for environment in tools.bins.glob("converter*"):
        shutil.copytree(environment, project.bins / environment.name, symlinks=True)
    return project


@pytest.fixture
def bare(tools: Tools, tmp_path: Path) -> Iterator[Project]:
    """As `own_tools`, for one test."""
    made = own_tools(tools, tmp_path)
    yield made
    made.close()
