"""Projects whose models come from a hub: repositories of tiny files, and what they cost."""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from graph import Project, Run, Tools
from hub import Hub
from tiny.checkpoint import make_checkpoint

REPO = "org/name"
README = {"README.md": b"# read me"}


@dataclass
class HubProject(Project):
    """A project whose doit asks `hub`; `sample` is a GGUF that the tiny programs take."""

    hub: Hub = field(kw_only=True)
    sample: bytes = field(kw_only=True, repr=False)
    uploads: int = 0

    def content(self, label: str, layers: int = 1) -> bytes:
        """A GGUF like no other; its header says that it has so many layers."""
        key = b"llama.block_count" + struct.pack("<I", 4)
        one, wanted = (key + struct.pack("<I", count) for count in (1, layers))
        assert one in self.sample
        return self.sample.replace(one, wanted) + label.encode().ljust(1000, b".")

    def quantizations(self, *labels: str) -> dict[str, bytes]:
        """Files of a repository that holds one model in these types."""
        return {f"name-{label}.gguf": self.content(label) for label in labels}

    def safetensors(self, dtype: str = "F16", **config: object) -> dict[str, bytes]:
        """Files of a checkpoint; `config` are keys of its config.json."""
        folder = make_checkpoint(self._upload_folder(), dtype=dtype)
        found = {path.name: path.read_bytes() for path in folder.iterdir()}
        edited = {**json.loads(found["config.json"]), **config}
        return {**found, "config.json": json.dumps(edited).encode()}

    def upload(
        self, files: Mapping[str, bytes], repo: str = REPO, revision: str = "main", **more: Any
    ) -> str:
        """Make these the files of a repository; the commit."""
        folder = self._upload_folder()
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.hub.add(repo, folder, revision=revision, **more)

    def _upload_folder(self) -> Path:
        self.uploads += 1
        folder = self.folder / "uploads" / str(self.uploads)
        folder.mkdir(parents=True)
        return folder

    def place(self, repo: str = REPO, commit: str = "", kind: str = "gguf") -> Path:
        """The folder of a repository at a commit (main's)."""
        commit = commit or self.hub.commit(repo)
        return self.models / kind / f"{repo.replace('/', '__')}__{commit[:12]}"

    def manifest(self, repo: str = REPO, commit: str = "") -> dict[str, Any]:
        """A repository's `.hub.json`."""
        text = (self.place(repo, commit) / ".hub.json").read_text(encoding="utf-8")
        return dict(json.loads(text))

    def there(self, kind: str = "gguf") -> dict[str, bytes]:
        """Everything that was downloaded or made, by its path below models/."""
        found = {path: path.name for path in (self.models / kind).rglob("*") if path.is_file()}
        return {
            path.relative_to(self.models).as_posix(): path.read_bytes()
            for path, name in found.items()
            if not name.startswith(".")
        }

    def rows(self, *words: str) -> dict[str, tuple[str, str]]:
        """What `doit list` says: each step's status, and why."""
        lines = [line.split(None, 2) for line in self.doit("list", *words).splitlines()[1:]]
        return {name: (status, why) for name, status, why in lines}

    def fetched(self) -> set[str]:
        """Names of the files of which any content was asked for."""
        return {record.name for record in self.hub.asked("resolve", method="GET")}

    @contextmanager
    def silence(self) -> Iterator[None]:
        """What is done in here must not ask the hub for anything."""
        before = len(self.hub.requests)
        yield
        assert self.hub.requests[before:] == []

    def served(self, *words: str) -> list[str]:
        """Serve, stop again; the command line that llama-server had."""
        run = self.start("serve", "port=auto", *words)
        return self.argv(run)

    def argv(self, run: Run) -> list[str]:
        """The command line of a run's llama-server, once it is healthy; ends it."""
        run.wait_for("ready in ")
        (server,) = [child for child in run.children() if child.name() == "llama-server"]
        words = server.cmdline()
        run.stop()
        return words


@pytest.fixture
def online(
    ready: Project, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubProject]:
    """A project with built tools, no model, and an empty hub."""
    with Hub() as hub:
        environment = hub.environment()
        for name in set(os.environ) - set(environment):
            monkeypatch.delenv(name)
        sample = ready.gguf().read_bytes()
        made = HubProject(tmp_path, tools.bins, tools.tree, hub=hub, sample=sample)
        made.env = environment
        yield made
        made.close()


def ran(output: str) -> set[str]:
    """The steps that a run did."""
    return set(re.findall(r"^(\w+) +done in ", output, re.MULTILINE))


def value_of(argv: list[str], option: str) -> str:
    """What follows an option on a command line."""
    return argv[argv.index(option) + 1]
