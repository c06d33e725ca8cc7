"""`.hub.json`: what a repository held at one commit, and what was chosen from it, once."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import files
from tasks.layout import MANIFEST_NAME, Layout, hub_id

_VERSION = 1


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at its commit; the size in bytes."""

    name: str
    """Path in the repository, with '/'."""
    size: int
    sha256: str = ""
    """Of the large files, which the hub keeps apart from git."""
    git_sha1: str = ""
    """Of all others: sha1 of `blob <size>\\0` and the content, as git names a file."""

    @property
    def checksum(self) -> str:
        """Whichever checksum the hub gives."""
        return self.sha256 or self.git_sha1


@dataclass(frozen=True)
class Request:
    """What the user asked of a repository."""

    quantization: str = ""
    """As the user wrote it, '' where none was asked."""
    filename: str = ""
    pattern: str = ""
    mmproj: str = ""
    """A file of the repository, 'no', or '' to take the one that fits."""

    @property
    def key(self) -> str:
        """This request's name among a manifest's choices; '' where nothing was asked."""
        asked = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return " ".join(f"{name}={value.lower()}" for name, value in asked.items())


@dataclass(frozen=True)
class Choice:
    """The files that answer one request."""

    kind: str
    """'gguf' (served as they are) or 'safetensors' (converted first)."""
    files: tuple[str, ...]
    """Everything to download, without the mmproj. The first one is what llama-server loads."""
    quantization: str = ""
    """Of GGUFs, as the file's name spells it ('Q5_K_M', 'UD-Q4_K_XL'); '' where it does not say."""
    mmproj: str = ""
    why: str = ""
    """One line for the user; '' where there was nothing to choose."""
    intermediate: str = ""
    """Of safetensors: the 16-bit type to convert to."""
    when: int = 0
    """Nanoseconds since 1970; of two answers to one request the later one counts."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every file to download."""
        return (*self.files, self.mmproj) if self.mmproj else self.files


@dataclass(frozen=True)
class Manifest:
    """A repository's files at one commit."""

    repo: str
    """`org/name`; of a file outside of any hub, its address without what may be secret."""
    commit: str
    """40 hex digits; of a file outside of any hub, what its server calls this version."""
    files: tuple[RemoteFile, ...]
    asked: Mapping[str, int] = field(default_factory=dict)
    """When (ns since 1970) the hub said that a revision, by its name, is this commit."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """By the revision asked for and the request's key."""

    @property
    def id(self) -> str:
        """Name of the model's folders."""
        return hub_id(self.repo, self.commit)

    def file(self, name: str) -> RemoteFile:
        """The file with a name; KeyError where there is none."""
        return {file.name: file for file in self.files}[name]

    def files_of(self, choice: Choice) -> list[RemoteFile]:
        """Every file to download for a choice."""
        by_name = {file.name: file for file in self.files}
        return [by_name[name] for name in choice.names]


@dataclass(frozen=True)
class Pinned:
    """A request for a repository and its answer: the commit and the files."""

    manifest: Manifest
    choice: Choice
    url: str = ""
    """Of a file outside of any hub: its address as the user gave it, perhaps with a secret."""

    @property
    def name(self) -> str:
        """`org/name`, or the address of a file outside of any hub."""
        return self.manifest.repo

    @property
    def source(self) -> Mapping[str, Any]:
        """Where the model came from, for its `.state.json`."""
        kind = "url" if "://" in self.name else "hub"
        return {"type": kind, "reference": self.name, "revision": self.manifest.commit}


def choice_key(revision: str, request: Request, role: str = "") -> str:
    """The name of a choice in a manifest; `role` where it is not for the model itself."""
    return " ".join(filter(None, (revision, role, request.key)))


def known(layout: Layout, repo: str) -> list[Manifest]:
    """What was resolved of a repository so far, one manifest for each commit.

    To the hub `Org/Name` and `org/name` are one; an address is case-sensitive.
    """
    if "://" in repo:
        return [one for one in everything(layout, hub_id(repo, "")) if one.repo == repo]
    folders = re.sub("[a-zA-Z]", lambda c: f"[{c[0].lower()}{c[0].upper()}]", hub_id(repo, ""))
    return [one for one in everything(layout, folders) if one.repo.lower() == repo.lower()]


def everything(layout: Layout, folders: str = "") -> Iterator[Manifest]:
    """Every manifest, or those in folders whose names begin with a pattern."""
    for path in sorted(layout.models.glob(f"gguf/{folders}*/{MANIFEST_NAME}")):
        if manifest := load(path):
            yield manifest


def load(path: Path) -> Manifest | None:
    """The manifest in a file; None where there is none or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _decode(data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def update(layout: Layout, manifest: Manifest, change: Callable[[Manifest], Manifest]) -> Manifest:
    """Change what is on disk of this repository and commit, or begin it; the result."""
    import filelock

    path = layout.gguf_folder(manifest.id) / MANIFEST_NAME
    with files.storage(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f"{path.name}.lock")):
            before = load(path)
            # What the hub listed belongs to the commit; choices and times may come from elsewhere.
            if before and before.commit == manifest.commit and before.repo == manifest.repo:
                manifest = dataclasses.replace(manifest, asked=before.asked, choices=before.choices)
            changed = change(manifest)
            files.sweep(path)
            files.write_text(path, json.dumps(_encode(changed), indent=1) + "\n")
    return changed


def later_than(manifests: list[Manifest]) -> int:
    """A time in ns since 1970 after all that these manifests tell of, whatever the clock says."""
    times = [when for one in manifests for when in one.asked.values()]
    times += [choice.when for one in manifests for choice in one.choices.values()]
    return max([time.time_ns(), *(when + 1 for when in times)])


def _encode(manifest: Manifest) -> Any:
    return {"version": _VERSION, **dataclasses.asdict(manifest)}


def _decode(data: Any) -> Manifest:
    if data["version"] != _VERSION:
        raise ValueError("unknown version")
    found = tuple(RemoteFile(**entry) for entry in data["files"])
    choices = {
        str(key): Choice(**{**entry, "files": tuple(entry["files"])})
        for key, entry in data["choices"].items()
    }
    asked = dict(data["asked"])
    numbers = [file.size for file in found] + [one.when for one in choices.values()]
    if not all(isinstance(number, int) for number in (*numbers, *asked.values())):
        raise ValueError("a number that is none")
    names = {file.name for file in found}
    for name in names:
        files.inside(Path(), name)
    for choice in choices.values():
        if not choice.files or not names.issuperset(choice.names):
            raise ValueError("a choice of files that are not there")
    return Manifest(str(data["repo"]), str(data["commit"]), found, asked, choices)
