"""A download on disk: hidden and with a journal until its checksum holds, then its name."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

from tasks import files
from tasks.errors import ModelError, StorageError
from tasks.files import FileSum
from tasks.transfer import ranges

_CHUNK = 1 << 20


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
    anew: bool = False
    """Download it even where the target is right: the user asked for that."""

    @property
    def name(self) -> str:
        """For messages."""
        return self.label or self.target.name

    @property
    def on_hub(self) -> bool:
        """True where the hub itself serves it, not another server."""
        from huggingface_hub import constants

        return self.url.startswith(constants.ENDPOINT.rstrip("/") + "/") and "/resolve/" in self.url

    @property
    def expected(self) -> str:
        """The checksum that must hold, '' where none is known."""
        return self.sha256 or self.git_sha1


class Digest:
    """The checksums of a content of known size, while it is read."""

    def __init__(self, wanted: Wanted, size: int) -> None:
        self._wanted = wanted
        self.size = size
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

    def discard(self) -> None:
        """Nothing of it is needed: the target is there."""
        self.close()
        self.path.unlink(missing_ok=True)
        self.journal.unlink(missing_ok=True)

    def refuse(self, digest: Digest) -> ModelError:
        """Keep a file of a wrong checksum aside, one for each target; the error that says so."""
        self.close()
        target = self.wanted.target
        for older in target.parent.glob(f"{glob.escape(target.name)}.????????.mismatch"):
            files.remove(older)
        aside = target.with_name(f"{target.name}.{digest.sha256[:8]}.mismatch")
        os.replace(self.path, aside)
        self.journal.unlink(missing_ok=True)
        # Only what a user gives for an address can be wrong itself.
        or_wrong = "" if self.wanted.on_hub else " or sha256= is wrong (refresh=yes forgets it)"
        return ModelError(
            f"{self.wanted.name} is not what it should be; it is kept as {aside}",
            f"its checksum is {digest.actual[:12]}…, not {self.wanted.expected[:12]}…",
            "run the same again; if it happens again, a proxy or mirror in between damages files"
            + or_wrong,
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
        target = self.wanted.target
        if not self.wanted.anew and target.is_file() and target.stat().st_size == size:
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


def write(sink: RawIOBase, data: bytes) -> int:
    """Write all of it; its length."""
    rest = memoryview(data)
    while rest:
        rest = rest[sink.write(rest) or 0 :]
    return len(data)


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
