"""The repository that the tests of the hub's stand-in serve, and how they ask for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hub import Hub
from huggingface_hub import HfApi, hf_hub_url

REPO = "org/name-1.0"
GGUF = "sub dir/mödel #1 50%.gguf"
CONTENT = bytes(range(256)) * 400


def write_sample(folder: Path) -> Path:
    """A repository: one LFS file whose name must be quoted, two small ones."""
    (folder / GGUF).parent.mkdir(parents=True)
    (folder / GGUF).write_bytes(CONTENT)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "sub dir" / "README.md").write_text("# hello\n")
    return folder


def url_of(hub: Hub, name: str = GGUF, repo: str = REPO) -> str:
    """Where a file is resolved."""
    return hf_hub_url(repo, name, endpoint=hub.endpoint)


def get(url: str, span: str = "", **headers: str) -> httpx2.Response:
    """What a GET answers, redirects followed."""
    headers |= {"Range": f"bytes={span}"} if span else {}
    return httpx2.get(url, headers=headers, follow_redirects=True, trust_env=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sample(tmp_path / "repo")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever proxy the machine uses, loopback needs none."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def hub(folder: Path) -> Iterator[Hub]:
    with Hub() as hub:
        hub.add(REPO, folder)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)
