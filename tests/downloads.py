"""A hub, a folder, and downloads from the one to the other."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import Hub

from tasks import console, process
from tasks.files import FileSum
from tasks.transfer import fetch, ranges
from tasks.transfer.fetch import Wanted

MIB = 1 << 20
TOKEN = "hf_secret"
REPO = "org/model"


class Place:
    """Downloads of the files of one repository, to `folder`."""

    def __init__(self, hub: Hub, base: Path) -> None:
        import huggingface_hub.utils._http as hub_client

        self.hub, self.source, self.folder = hub, base / "source", base / "models"
        self.source.mkdir()
        self.client = hub_client.default_client_factory()
        self.headers: Mapping[str, str] = {}

    def add(self, **sizes: int) -> list[Wanted]:
        """Put files of random content on the hub; `a_gguf=10` is a.gguf of 10 bytes."""
        names = [name.replace("_", ".") for name in sizes]
        for name, size in zip(names, sizes.values(), strict=True):
            (self.source / name).write_bytes(random.randbytes(size))
        self.hub.add(REPO, self.source)
        return [self.wanted(name) for name in names]

    def wanted(self, name: str, repo: str = REPO) -> Wanted:
        """A file of a repository, as its listing has it."""
        commit = self.hub.commit(repo)
        file = self.hub.repos[repo].commits[commit][name]
        return Wanted(
            f"{self.hub.endpoint}/{repo}/resolve/{commit}/{name}",
            self.folder / name,
            file.size,
            file.sha256,
            "" if file.sha256 else file.git_sha1,
            name,
        )

    def plain(self, name: str, size: int) -> Wanted:
        """A file of a web server of which only the address is known."""
        path = self.source / name
        path.write_bytes(random.randbytes(size))
        return Wanted(self.hub.file(path), self.folder / name)

    def fetch(self, *wanted: Wanted) -> dict[Path, FileSum]:
        """Have the files."""
        return fetch.fetch(wanted, headers=self.headers, client=self.client)

    def interrupt(self, wanted: Wanted, after: int) -> None:
        """Fetch, and be stopped once the server sent about so many bytes."""
        stop = threading.Event()
        ended: list[object] = []

        def run() -> None:
            try:
                ended.append(self.fetch(wanted))
            except process.Stopped as error:
                ended.append(error)

        rate = self.hub.fault("rate", bytes_per_s=8 * MIB)
        before = self.hub.bytes_sent
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(process, "_stopping", stop)
            thread = threading.Thread(target=run)
            thread.start()
            self.hub.wait(lambda: self.hub.bytes_sent - before >= after, "bytes")
            stop.set()
            thread.join()
        rate.clear()
        self.hub.rest()
        assert isinstance(ended[0], process.Stopped)
        assert not wanted.target.exists()

    def is_there(self, wanted: Wanted) -> bool:
        """True where the target has the content that the hub has."""
        return wanted.target.read_bytes() == (self.source / wanted.target.name).read_bytes()

    def names(self) -> set[str]:
        """All in the folder but locks, which stay."""
        return {name for name in os.listdir(self.folder) if not name.endswith(".lock")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    import huggingface_hub.constants

    monkeypatch.setattr(ranges, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(console, "PROGRESS_EVERY_S", 0.0)
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        yield Place(hub, tmp_path)


def without_sum(wanted: Wanted, **more: Any) -> Wanted:
    """The same of which nobody knows the checksum."""
    return replace(wanted, sha256="", git_sha1="", **more)
