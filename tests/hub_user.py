"""Someone without a model and without programs, and the hubs whose repositories they ask for."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from graph import TINY, Project
from hub import Hub
from hub_wire import Record

__all__ = ["employee", "hub", "nobody", "secure", "source", "user"]

OPEN, PRIVATE, GATED, SEVERAL = "org/open", "org/private", "org/gated", "org/several"
GOOD, STRANGER, WRONG = "hf_goodSecret", "hf_strangerSecret", "hf_wrongSecret"
NAME = "tiny-Q4_K_M.gguf"
CONTENT = b"GGUF" + bytes(range(256)) * 80


@dataclass
class User(Project):
    """Someone without a model and without programs, who asks `hub`."""

    hub: Hub = field(kw_only=True)

    def refused(self, *words: str, **env: str) -> str:
        """Run what is refused while the model is looked up, before anything else; the output."""
        output = self.doit(*words, status=14, env=env)
        assert output.startswith("ERROR: "), output
        assert "Traceback" not in output
        assert not self.bins.exists()
        assert not self.models.exists()
        return output

    def downloads(self, repo: str = OPEN, **env: str) -> None:
        """Download what is not there yet."""
        self.doit("download", f"model={repo}", env=env)
        assert self.found(repo).read_bytes() == CONTENT

    def found(self, repo: str = OPEN) -> Path:
        """Where a repository's file is, or will be."""
        folder = f"{repo.replace('/', '__')}__{self.hub.commit(repo)[:12]}"
        return self.models / "gguf" / folder / NAME


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / NAME).write_bytes(CONTENT)
    (folder / "README.md").write_text("# read me\n")
    return folder


def fill(hub: Hub, source: Path) -> None:
    """Put a repository of each kind on a hub."""
    hub.tokens = {GOOD: {PRIVATE, GATED, SEVERAL}, STRANGER: set()}
    hub.add(OPEN, source)
    hub.add(PRIVATE, source, private=True)
    hub.add(GATED, source, gated=True)
    more = dict.fromkeys(("tiny-Q5_K_M.gguf", "tiny-Q8_0.gguf"), CONTENT)
    hub.add(SEVERAL, source, gated=True, extra=more)


class TimedHub(Hub):
    """A hub that knows when it was asked, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def note(self, record: Record) -> None:
        self.times.append(time.monotonic())
        super().note(record)


@pytest.fixture
def hub(source: Path) -> Iterator[TimedHub]:
    hub = TimedHub()
    with hub:
        fill(hub, source)
        yield hub


@pytest.fixture
def secure(source: Path) -> Iterator[Hub]:
    """A hub whose certificate a company signed."""
    with Hub(tls=True) as hub:
        fill(hub, source)
        yield hub


def user_of(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    environment = hub.environment(SSL_CERT_FILE=None)
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    return User(folder, folder / "bins", TINY, env=environment, hub=hub)


@pytest.fixture
def user(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    made = user_of(hub, tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def employee(secure: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    """A user of `secure` who was not told of the company's authority."""
    made = user_of(secure, tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def nobody() -> Iterator[str]:
    """HOST:PORT where nothing listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def host(url: str) -> str:
    return urlsplit(url).netloc
