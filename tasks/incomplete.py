"""A download on disk: hidden and with a journal until its checksum holds, then its name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tasks import console, files, ranges
from tasks.errors import ModelError, StorageError
from tasks.files import FileSum

_CHUNK = 1 << 20
_FICLONE = 0x40049409
"""Linux: let a new file share the other's blocks."""


@dataclass(frozen=True)
class Wanted:
    """A file to have; what is known of its content decides whether it is that."""

    url: str
    target: Path
    size: int | None = None
    """Bytes; None: the server's first answer says it."""
    sha256: str = ""
    git_sha1: str = ""
    """Looked at where there is no sha256: sha1 of `blob <size>\\0` and the content."""
    label: str = ""
    """Its name in messages."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.label or self.target.name

    @property
    def expected(self) -> str:
        """The checksum that must hold, '' where none is known."""
        return self.sha256 or self.git_sha1


class Digest:
    """The checksums of a content of known size, while it is read."""

    def __init__(self, wanted: Wanted, size: int) -> None:
        self._wanted = wanted
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % size)
        self._by_git = bool(wanted.git_sha1 and not wanted.sha256)

    def update(self, data: bytes | memoryview) -> None:
        """Go on with the next bytes."""
        self._sha256.update(data)
        if self._by_git:
            self._git.update(data)

    @property
    def sha256(self) -> str:
        """Of everything so far."""
        return self._sha256.hexdigest()

    @property
    def actual(self) -> str:
        """What is to be compared with `Wanted.expected`."""
        return self._git.hexdigest() if self._by_git else self.sha256

    @property
    def matches(self) -> bool:
        """True where this is the content that is wanted, or nobody knows better."""
        return self._wanted.expected in ("", self.actual)


def read(path: Path, wanted: Wanted, check: Callable[[], None]) -> tuple[Digest, FileSum]:
    """The checksums of a whole file; `check` is called all along, and may raise."""
    stat = path.stat()
    digest = Digest(wanted, stat.st_size)
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            check()
    return digest, FileSum(digest.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)


class Incomplete:
    """The unfinished file of a target, and the journal of what of it is safe.

    Both outlive every interruption, so their names name the content and nothing else.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        content = wanted.expected or hashlib.sha256(wanted.url.encode()).hexdigest()
        name = f".{wanted.target.name}.{content[:12]}.incomplete"
        self.path = wanted.target.with_name(name)
        self.journal = wanted.target.with_name(f"{name}.journal")
        self._log: BinaryIO | None = None

    def left_over(self) -> tuple[int, str, ranges.Spans] | None:
        """Size, validator and what is certain of an earlier run's download; None: nothing is."""
        try:
            found = ranges.read_journal(self.journal.read_bytes())
            on_disk = self.path.stat().st_size
        except FileNotFoundError:
            return None
        if found is None:
            return None
        size, validator, spans = found
        if on_disk > size or self.wanted.size not in (None, size):
            return None
        if not (self.wanted.expected or validator):
            return None  # Nothing says that the server would go on with the same content.
        return size, validator, spans.below(on_disk)

    def begin(self, size: int, validator: str, safe: ranges.Spans) -> None:
        """Make ready to write; all but `safe` is forgotten."""
        self.close()
        if not safe.total:
            self.journal.unlink(missing_ok=True)
            self.path.write_bytes(b"")
        lines = [ranges.note(start, end) for start, end in safe]
        new = self.journal.with_name(f"{self.journal.name}.new")
        new.write_bytes(ranges.heading(size, validator) + b"".join(lines))
        os.replace(new, self.journal)
        self._log = open(self.journal, "ab", buffering=0)  # noqa: SIM115

    def wrote(self, start: int, end: int) -> None:
        """Journal that these bytes are in the file."""
        if self._log:
            self._log.write(ranges.note(start, end))

    def begin_unjournaled(self) -> None:
        """Make ready for a stream that cannot be continued."""
        self.close()
        self.journal.unlink(missing_ok=True)
        self.path.write_bytes(b"")

    def close(self) -> None:
        """Journal no more."""
        if self._log:
            self._log.close()
            self._log = None

    def refuse(self, digest: Digest) -> ModelError:
        """Keep a file of a wrong checksum aside, one for each target; the error that says so."""
        self.close()
        target = self.wanted.target
        for older in target.parent.glob(f"{glob.escape(target.name)}.????????.mismatch"):
            files.remove(older)
        aside = target.with_name(f"{target.name}.{digest.sha256[:8]}.mismatch")
        os.replace(self.path, aside)
        self.journal.unlink(missing_ok=True)
        return ModelError(
            f"{self.wanted.name} was damaged on its way; it is kept as {aside}",
            f"its checksum is {digest.actual[:12]}…, not {self.wanted.expected[:12]}…",
            "run the same again; if it happens again, a proxy or mirror in between damages files",
        )

    def land(self, digest: Digest) -> FileSum:
        """Give the verified file its name."""
        self.close()
        with open(self.path, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.path, self.wanted.target)
        self.journal.unlink(missing_ok=True)
        stat = self.wanted.target.stat()
        return FileSum(digest.sha256, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def missing(self) -> int:
        """Bytes that the disk still has to take, as far as the size is known."""
        size = self.wanted.size or 0
        if self.wanted.target.is_file() and self.wanted.target.stat().st_size == size:
            return 0
        return max(0, size - self.held())

    def held(self) -> int:
        """Bytes that the unfinished file occupies; its length says nothing, as it is sparse."""
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return 0
        blocks = getattr(stat, "st_blocks", None)
        return stat.st_size if blocks is None else min(stat.st_size, blocks * 512)


def check_room(wanted: Sequence[Wanted]) -> None:
    """StorageError where these files do not fit on their disks."""
    disks: dict[int, tuple[Path, list[Wanted]]] = {}
    for one in wanted:
        folder = files.existing_parent(one.target.parent)
        disks.setdefault(folder.stat().st_dev, (folder, []))[1].append(one)
    for folder, group in disks.values():
        need = sum(Incomplete(one).missing() for one in group)
        free = shutil.disk_usage(folder).free
        if need > free:
            names = group[0].name if len(group) == 1 else f"{len(group)} files"
            raise StorageError(
                f"not enough space to download {names}",
                f"{files.human_size(need)} are still to come, "
                f"{files.human_size(free)} are free in {folder}",
                "free some space, choose another disk with models-dir=, or a smaller quantization=",
            )


@contextlib.contextmanager
def alone(wanted: Wanted, who: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the target's lock; `wait` is called between tries, and may raise."""
    import filelock

    target = wanted.target
    lock = filelock.FileLock(target.with_name(f".{target.name}.lock"))
    told = False
    while True:
        try:
            lock.acquire(timeout=0)
            break
        except filelock.Timeout:
            if not told:
                console.say(who, f"{wanted.name}: waiting for another process that downloads it")
            told = True
            wait()
    try:
        yield
    finally:
        lock.release()


def standing(wanted: Wanted, who: str, check: Callable[[], None]) -> FileSum | None:
    """The target's checksum where it is there and right; else it is moved aside, its lock held."""
    target = wanted.target
    if not os.path.lexists(target):
        return None
    mark = "other"
    if target.is_file():
        digest, known = read(target, wanted, check)
        if digest.matches and wanted.size in (None, known.size):
            return known
        mark = digest.sha256[:8]
    aside = target.with_name(f"{target.name}.{mark}.replaced")
    os.replace(target, aside)
    console.say(who, f"{wanted.name} is not what it should be: moved to {aside.name}")
    return None


def reuse(
    candidates: Sequence[Path], wanted: Wanted, who: str, check: Callable[[], None]
) -> FileSum | None:
    """Make the first candidate with the wanted content the target; None where none has it.

    The target's lock must be held, and the target must not exist.
    """
    if not wanted.expected:
        return None
    for candidate in candidates:
        try:
            source = candidate.resolve(strict=True)
            if not source.is_file() or wanted.size not in (None, source.stat().st_size):
                continue
            digest, known = read(source, wanted, check)
        except OSError:  # Another user's, or gone meanwhile.
            continue
        if digest.matches and (adopted := _adopt(source, known, wanted, check)):
            console.say(who, f"{wanted.name} was there already: {candidate}")
            return adopted
    return None


def _adopt(
    source: Path, known: FileSum, wanted: Wanted, check: Callable[[], None]
) -> FileSum | None:
    target = wanted.target
    partial = target.with_name(f".{target.name}.{os.getpid()}{files.PARTIAL}")
    files.remove(partial)
    try:
        linked = _link(source, partial)
        if linked:
            adopted = known
            if not known.vouched_by(partial.stat()):
                return None
        else:
            if not _clone(source, partial):
                shutil.copyfile(source, partial)
            digest, adopted = read(partial, wanted, check)
            if not digest.matches:
                return None
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, target)
        return adopted
    finally:
        files.remove(partial)


def _link(source: Path, to: Path) -> bool:
    try:
        os.link(source, to)
    except OSError:  # Another disk, a file system without links, a file of somebody else.
        return False
    return True


def _clone(source: Path, to: Path) -> bool:
    if sys.platform != "linux":
        return False
    import fcntl

    with open(source, "rb") as old, open(to, "wb") as new:
        try:
            fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
        except OSError:
            return False
    return True
