"""A Hugging Face hub for the tests: what it holds, its faults, what was asked of it.

Two loopback ports of one `Hub`: the hub itself and, as another origin, the CDN that large files
are redirected to. `hub_http` answers through `hub_wire`; the client that asks is the
real huggingface_hub.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import tempfile
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hub_http import Handler
from hub_wire import Record, Server, tls_context

DEADLINE_S = 120.0
"""How long `Hub.wait` waits for what must come, before it fails."""

LFS_SUFFIXES = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".onnx")
LFS_SIZE = 10 * 1024 * 1024
"""Bytes from which any file is kept apart from git."""

KINDS = ("", "api", "resolve", "cdn", "plain", "xet")
"""Of requests; '' stands for all."""

# What each kind of fault can be told.
FAULTS = {
    "slow": {"seconds"},  # before the answer
    "rate": {"bytes_per_s"},  # of every body
    "drop": {"after"},  # connection reset after so many bytes of a body
    "truncate": {"after"},  # connection closed in order, but too early
    "flip": {"at"},  # one bit of the byte at this offset of the file
    "status": {"code", "retry_after", "headers", "text"},  # retry_after: seconds, str or datetime
    "size": {"to"},  # api: as listed; resolve: X-Linked-Size; cdn, plain: Content-Range
    "no-range": {"beyond"},  # 200 and the whole file where a range starts at `beyond` (0) or later
    "shift": set(),  # 206, but of the file's start
    "stall": {"after"},  # nothing (more) is sent until Fault.release()
    "expire": set(),  # of the CDN: signed URLs of that file are worth nothing any more
    "xet": {"only", "status"},  # files of Xet; `only` (True): no download without it
    "edit": {"by"},  # a function from the JSON of an answer to another
    "garbage": {"text"},  # 200, but not JSON
    "giant": {"size"},  # so many bytes of blanks after the JSON
}

_sums: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class File:
    """A file of a commit: on disk, or `content` where no disk could hold its name."""

    name: str
    size: int
    path: Path | None = None
    content: bytes = b""
    sha256: str = ""
    """Of LFS files only."""
    git_sha1: str = ""

    @property
    def lfs(self) -> bool:
        """Kept apart from git, and so served by the CDN."""
        return bool(self.sha256)

    def read(self, offset: int, amount: int) -> bytes:
        """A piece of the content."""
        if self.path is None:
            return self.content[offset : offset + amount]
        with self.path.open("rb") as stream:
            stream.seek(offset)
            return stream.read(amount)

    @property
    def pointer(self) -> bytes:
        """What git holds of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\n"
        return f"{text}size {self.size}\n".encode()

    @property
    def etag(self) -> str:
        """As headers carry it, with the quotes."""
        return f'"{self.sha256 or self.git_sha1}"'

    @property
    def xet_hash(self) -> str:
        """64 digits, another than the sha256."""
        return hashlib.sha256(b"xet" + self.sha256.encode()).hexdigest()


@dataclass
class Repo:
    """A repository: its commits by sha, and its branches and tags."""

    name: str
    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> str:
        """The commit of a revision, '' where there is none."""
        return revision if revision in self.commits else self.refs.get(revision, "")


class Fault:
    """A fault that is switched on; `hits` counts the answers it spoiled."""

    def __init__(
        self, kind: str, where: str, name: str, method: str, times: int | None, **options: Any
    ) -> None:
        assert where in KINDS, where
        assert set(options) <= FAULTS[kind], f"{kind} takes {FAULTS[kind]}"
        self.kind, self.where, self.name, self.method = kind, where, name, method
        self.times, self.options = times, options
        self.hits = 0
        self.released = threading.Event()

    def __getitem__(self, option: str) -> Any:
        return self.options[option]

    def get(self, option: str, default: Any) -> Any:
        """The option, or the default where it was not given."""
        return self.options.get(option, default)

    def concerns(self, kind: str, where: str, names: tuple[str, ...], method: str) -> bool:
        """True where it spoils such an answer."""
        return (
            (self.times is None or self.hits < self.times)
            and self.kind == kind
            and self.where in ("", where)
            and self.method in ("", method)
            and any(fnmatchcase(name, self.name) for name in names)
        )

    def release(self) -> None:
        """Let the stalled answers go on."""
        self.released.set()

    def clear(self) -> None:
        """Switch it off, and let go what it holds."""
        self.times = 0
        self.released.set()


class Hub:
    """A hub that runs between `start` and `stop`, or for the length of a `with` block."""

    def __init__(self, *, tls: bool = False, page_size: int = 1000) -> None:
        self.page_size = page_size
        """Entries on one page of a listing."""
        self.tokens: dict[str, set[str]] = {}
        """Every valid token, and the gated and private repositories it opens."""
        self.repos: dict[str, Repo] = {}
        self.plain: dict[str, File] = {}
        self.requests: list[Record] = []
        self.bytes_sent = 0
        """Of files' content, as written to sockets.

        What a client that was killed had not read yet is in it, up to 7 MB of a connection; a
        'rate' that the client keeps up with makes that nothing.
        """
        self.failures: list[BaseException] = []
        """Errors of the stand-in itself; leaving the `with` block raises the first."""
        self.stopping = threading.Event()
        self.news = threading.Condition()
        self._faults: list[Fault] = []
        self._signed: dict[str, File] = {}
        self._expired: set[str] = set()
        self._now: Counter[str] = Counter()
        self._most: Counter[str] = Counter()
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.ca_pem = Path(self._folder.name) / "ca.pem"
        """With `tls`: the certificate that clients must trust."""
        context = tls_context(self.ca_pem) if tls else None
        self._servers = [Server(self, context, port, Handler) for port in ("api", "cdn")]
        self.endpoint, self.cdn_endpoint = (server.origin for server in self._servers)

    def start(self) -> Hub:
        """Begin to answer."""
        for server in self._servers:
            server.start()
        return self

    def stop(self) -> None:
        """End every connection and forget everything."""
        self.stopping.set()
        for server in self._servers:
            server.stop()
        self.clear_faults()
        self._folder.cleanup()

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self.failures:
            raise self.failures[0]

    def environment(self, **more: str | None) -> dict[str, str]:
        """The whole environment of a client process: this hub, an empty HF_HOME, no proxy.

        `more` comes on top; None takes a variable away.
        """
        alien = ("HF_", "HUGGING", "SSL_CERT_", "REQUESTS_CA", "CURL_CA")
        clean = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(alien) and not name.lower().endswith("_proxy")
        }
        clean["HF_ENDPOINT"] = self.endpoint
        clean["HF_HOME"] = str(Path(self._folder.name) / "home")
        clean["HF_HUB_DISABLE_TELEMETRY"] = clean["HF_HUB_DISABLE_UPDATE_CHECK"] = "1"
        if self.ca_pem.exists():
            clean["SSL_CERT_FILE"] = str(self.ca_pem)
        merged: dict[str, str | None] = {**clean, **more}
        return {name: value for name, value in merged.items() if value is not None}

    # What it holds

    def add(
        self,
        name: str,
        folder: Path,
        *,
        revision: str = "main",
        commit: str = "",
        gated: bool = False,
        private: bool = False,
        refs: Mapping[str, str] | None = None,
        extra: Mapping[str, bytes] | None = None,
        sums: Mapping[str, str] | None = None,
    ) -> str:
        """Serve a folder as the repository `name`; the commit that `revision` is at now.

        The folder must stay as it is: older commits are served from theirs. `refs` are more
        branches and tags, by their commits ('' for this one); `extra` are files by names that
        no disk could hold; `sums` are sha256 of files that are too large to read.
        """
        files = [
            _file(path.relative_to(folder).as_posix(), path, sums or {})
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        files += [_memory_file(name, content) for name, content in (extra or {}).items()]
        tree = "".join(f"{file.git_sha1} {file.name}\0" for file in files)
        sha = commit or hashlib.sha1(f"{name}\0{tree}".encode()).hexdigest()
        repo = self.repos.setdefault(name, Repo(name))
        repo.gated, repo.private = gated, private
        repo.commits[sha] = {file.name: file for file in files}
        repo.refs[revision] = sha
        repo.refs.update({ref: target or sha for ref, target in (refs or {}).items()})
        return sha

    def commit(self, name: str, revision: str = "main") -> str:
        """The commit that a branch or tag is at."""
        return self.repos[name].refs[revision]

    def file(self, path: Path, name: str = "") -> str:
        """Serve a file as any web server does; its URL."""
        name = name or path.name
        self.plain[name] = _file(name, path, {})
        return f"{self.endpoint}/files/{urllib.parse.quote(name)}"

    def sign(self, file: File) -> str:
        """A URL of the CDN that needs no token, until it expires."""
        signature = secrets.token_hex(16)
        with self.news:
            self._signed[signature] = file
        leaf = urllib.parse.quote(file.name.rpartition("/")[2], safe="")
        disposition = f"inline; filename*=UTF-8''{leaf}; filename=\"{leaf}\";"
        query = {
            "response-content-disposition": disposition,
            "Expires": "4102444800",
            "Signature": signature,
        }
        path = f"/repos/{file.sha256[:2]}/{file.sha256}"
        return f"{self.cdn_endpoint}{path}?{urllib.parse.urlencode(query)}"

    def signed(self, signature: str, *, or_expired: bool = False) -> File | None:
        """The file of a signed URL, None where it expired."""
        with self.news:
            dead = signature in self._expired and not or_expired
            return None if dead else self._signed.get(signature)

    def expire_urls(self, name: str = "*") -> None:
        """Make all signed URLs worthless that were given out for files of such names."""
        with self.news:
            for signature, file in self._signed.items():
                if any(fnmatchcase(known, name) for known in _names(file.name)):
                    self._expired.add(signature)

    # Faults

    def fault(
        self,
        kind: str,
        *,
        where: str = "",
        name: str = "*",
        method: str = "",
        times: int | None = None,
        **options: Any,
    ) -> Fault:
        """Switch a fault on (see FAULTS), for `times` answers or until `clear()`.

        `where` is the kind of request ('' for all); `name` is a glob over a file's path or last
        name in 'resolve', 'cdn' and 'plain', over the repository's in 'api' (but over files' in
        a listing's sizes).
        """
        fault = Fault(kind, where, name, method, times, **options)
        with self.news:
            self._faults.append(fault)
        return fault

    def clear_faults(self) -> None:
        """Switch all faults off."""
        with self.news:
            for fault in self._faults:
                fault.clear()
            self._faults.clear()

    def strike(
        self,
        kind: str,
        where: str,
        name: str,
        method: str = "GET",
        *,
        count: bool = True,
        fits: Callable[[Fault], bool] = lambda fault: True,
    ) -> Fault | None:
        """The fault of a kind that spoils this answer; counts as a hit."""
        with self.news:
            for fault in self._faults:
                if fault.concerns(kind, where, _names(name), method) and fits(fault):
                    fault.hits += count
                    self.news.notify_all()
                    return fault
        return None

    # What was asked of it

    def asked(self, kind: str = "", name: str = "*", method: str = "") -> list[Record]:
        """The requests so far of a kind, for a file or repository, by a method."""
        with self.news:
            return [
                record
                for record in self.requests
                if kind in ("", record.kind)
                and method in ("", record.method)
                and any(fnmatchcase(known, name) for known in _names(record.name))
            ]

    @property
    def leaked(self) -> bool:
        """True where the CDN ever saw a token."""
        return any(record.authorized for record in self.asked("cdn"))

    def most_at_once(self, kind: str = "") -> int:
        """How many requests (of a kind) were in work at the same time, at most."""
        return self._most[kind]

    @property
    def most_connections(self) -> int:
        """How many connections were open at the same time, at most."""
        return self._most["connections"]

    def rest(self) -> None:
        """Wait until no request is being answered, so that what was sent is counted exactly."""
        self.wait(lambda: not self._now[""], "the end of all answers")

    def reset(self) -> None:
        """Begin to count anew."""
        with self.news:
            self.requests.clear()
            self.bytes_sent = 0
            self._most = Counter(self._now)

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until what was asked or sent makes a condition true; fails where it never does."""
        with self.news:
            assert self.news.wait_for(condition, DEADLINE_S), f"waited in vain: {what}"

    @contextmanager
    def counted(self, *keys: str) -> Iterator[None]:
        """Count one more in work for the length of the block."""
        with self.news:
            self._now.update(keys)
            for key in keys:
                self._most[key] = max(self._most[key], self._now[key])
            self.news.notify_all()
        try:
            yield
        finally:
            with self.news:
                self._now.subtract(keys)
                self.news.notify_all()

    def note(self, record: Record) -> None:
        """Account for a request that just came."""
        with self.news:
            self.requests.append(record)
            self.news.notify_all()

    def note_sent(self, record: Record, amount: int, content: bool) -> None:
        """Account for bytes of a body that went into a socket."""
        with self.news:
            record.sent += amount
            self.bytes_sent += amount if content else 0
            self.news.notify_all()


def _names(name: str) -> tuple[str, ...]:
    return name, name.rpartition("/")[2]


def _file(name: str, path: Path, sums: Mapping[str, str]) -> File:
    size = path.stat().st_size
    if name.endswith(LFS_SUFFIXES) or size >= LFS_SIZE:
        return _with_pointer(File(name, size, path, sha256=sums.get(name) or _sha256(path)))
    return File(name, size, path, git_sha1=_git_sha1(path.read_bytes()))


def _memory_file(name: str, content: bytes) -> File:
    if name.endswith(LFS_SUFFIXES):
        sha256 = hashlib.sha256(content).hexdigest()
        return _with_pointer(File(name, len(content), content=content, sha256=sha256))
    return File(name, len(content), content=content, git_sha1=_git_sha1(content))


def _with_pointer(file: File) -> File:
    return File(file.name, file.size, file.path, file.content, file.sha256, _git_sha1(file.pointer))


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key not in _sums:
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        _sums[key] = digest.hexdigest()
    return _sums[key]
