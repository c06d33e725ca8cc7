"""The one place that makes paths."""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from tasks.settings import Settings

STATE_NAME = ".state.json"
MANIFEST_NAME = ".hub.json"


@dataclass(frozen=True)
class Layout:
    """Every path of a project; all absolute."""

    root: Path
    bins: Path
    models: Path
    logs: Path

    @classmethod
    def of(cls, root: Path, settings: Settings) -> Layout:
        """The folders of the project at `root`, with what the settings put elsewhere."""
        return cls(
            root,
            settings.bins_dir or root / "bins",
            settings.models_dir or root / "models",
            settings.logs_dir or root / "logs",
        )

    @property
    def pin(self) -> Path:
        """The file that says which llama.cpp source is used."""
        return self.root / "vendor" / "llama.cpp.json"

    @property
    def vendored_source(self) -> Path:
        """The llama.cpp source, ours or the user's."""
        return self.root / "vendor" / "llama.cpp"

    @property
    def demo(self) -> Path:
        """The bundled model's checkpoint."""
        return self.root / "models" / "demo"

    def requirements(self, name: str) -> Path:
        """A file of pinned Python packages."""
        return self.root / "requirements" / f"{name}.txt"

    def binaries(self, platform: str, device: str) -> Path:
        """Folder of llama-server and llama-quantize; the CPU has no suffix."""
        return self.bins / (platform if device == "cpu" else f"{platform}-{device}")

    def build_tree(self, platform: str, device: str) -> Path:
        """CMake's folder."""
        return self.bins / "build" / self.binaries(platform, device).name

    def converter(self, variant: str = "") -> Path:
        """Python environment of the converter; a variant for an own source tree's packages."""
        return self.bins / f"converter{variant and '-'}{variant}"

    @property
    def test_environment(self) -> Path:
        """Python environment of the tests."""
        return self.bins / "tests"

    @property
    def zig(self) -> Path:
        """The compiler for machines that have none."""
        return self.bins / "zig"

    def gguf_folder(self, model_id: str) -> Path:
        """What was downloaded or made of a model, with its state."""
        return self.models / "gguf" / model_id

    def safetensors_folder(self, model_id: str) -> Path:
        """What was downloaded of a model to be converted, with its state."""
        return self.models / "safetensors" / model_id

    def log(self, name: str) -> Path:
        """A step's log; a run's own lines are appended."""
        return self.logs / f"{safe_name(name)}.log"

    def server_log(self, stamp: str) -> Path:
        """A server run's log; `stamp` as YYYYMMDD-HHMMSS."""
        return self.logs / f"run-server-{stamp}.log"


def executable(folder: Path, name: str, platform: str = sys.platform) -> Path:
    """A program in `folder`, named as `platform` names programs."""
    return folder / (f"{name}.exe" if platform.startswith("win") else name)


def python_of(environment: Path) -> Path:
    """The interpreter of a virtual environment."""
    if sys.platform == "win32":
        return environment / "Scripts" / "python.exe"
    return environment / "bin" / "python"


def safe_name(name: str) -> str:
    """`name` with only characters that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def local_id(folder: Path) -> str:
    """A local checkpoint's id: its name and 8 hex digits of its path's sha256."""
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:8]
    return f"{safe_name(folder.name)}__{digest}"


def hub_id(repo: str, commit: str) -> str:
    """The id of `org/name` at a commit; of an address, its last part and 8 hex digits of all."""
    if "://" in repo:
        name = unquote(repo.rpartition("/")[2])
        return f"{safe_name(name)}__{hashlib.sha256(repo.encode()).hexdigest()[:8]}"
    return f"{'__'.join(safe_name(part) for part in repo.split('/'))}__{commit[:12]}"
