"""What is there already instead of a download: the target itself, or the same content elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tasks import console, files
from tasks.files import FileSum
from tasks.transfer import incomplete
from tasks.transfer.incomplete import Wanted

_FICLONE = 0x40049409
"""Linux: let a new file share the other's blocks."""


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
        digest, known = incomplete.read(target, wanted, check)
        if digest.matches and wanted.size in (None, known.size):
            return known
        mark = digest.sha256[:8]
    aside = target.with_name(f"{target.name}.{mark}.replaced")
    os.replace(target, aside)
    console.say(who, f"{wanted.name} is not what it should be: moved to {aside.name}")
    return None


def adopt(
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
            digest, known = incomplete.read(source, wanted, check)
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
            digest, adopted = incomplete.read(partial, wanted, check)
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
