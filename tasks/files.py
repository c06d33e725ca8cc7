"""The one place that writes files: temporary name in the same folder, verify, replace."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StorageError

PARTIAL = ".partial"
"""Suffix of everything that is not finished; whoever holds the folder's lock may delete it."""

_CHUNK = 4 << 20


@dataclass(frozen=True)
class FileSum:
    """A file's content (sha256, size in bytes) and the stat that vouches for it unread."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int

    def vouched_by(self, stat: os.stat_result) -> bool:
        """True where size, mtime and inode all are as they were when the file was hashed."""
        return (self.size, self.mtime_ns, self.inode) == (
            stat.st_size,
            stat.st_mtime_ns,
            stat.st_ino,
        )


def sha256_of(path: Path) -> str:
    """The sha256 of a file's content, as 64 hex digits."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
    return digest.hexdigest()


_sums: dict[Path, FileSum] = {}


def note_sum(path: Path, found: FileSum) -> None:
    """Keep the checksum of a file that was just read whole, so that nobody reads it again."""
    _sums[path] = found


def file_sum(path: Path, known: FileSum | None = None) -> FileSum:
    """`path`'s checksum; `known` is trusted, and the file left unread, while its stat holds."""
    stat = path.stat()
    for trusted in (known, _sums.get(path)):
        if trusted is not None and trusted.vouched_by(stat):
            return trusted
    return FileSum(sha256_of(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what a disk or a permission refuses below `folder` into a StorageError."""
    try:
        yield
    except PermissionError as error:
        raise StorageError(
            f"no access to {error.filename or folder}",
            "permission denied",
            "choose other folders with models-dir=, bins-dir= and logs-dir=, "
            "or change the owner of these",
        ) from error
    except OSError as error:
        if error.errno in _DISK_FULL:
            free = shutil.disk_usage(existing_parent(folder)).free
            raise StorageError(
                f"no space left for {folder}",
                f"{human_size(free)} free on that disk",
                "free some space or choose another disk with models-dir= and bins-dir=",
            ) from error
        if error.errno in _READ_ONLY:
            raise StorageError(
                f"cannot write {error.filename or folder}",
                "the file system is read-only",
                "choose other folders with models-dir=, bins-dir= and logs-dir=",
            ) from error
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            raise StorageError(
                f"{error.filename or folder} cannot be made",
                "a file is in the way",
                "choose folders with models-dir=, bins-dir= and logs-dir=",
            ) from error
        raise


def _errnos(*names: str) -> frozenset[int]:
    import errno

    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_DISK_FULL = _errnos("ENOSPC", "EDQUOT")
_READ_ONLY = _errnos("EROFS")


def existing_parent(path: Path) -> Path:
    """`path` itself or its nearest ancestor that exists."""
    return path if path.exists() else existing_parent(path.parent)


@contextmanager
def replacing(path: Path, verify: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """A temporary name beside `path`; on success it is verified, flushed and takes its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        if verify:
            verify(partial)
        _flush(partial)
        os.replace(partial, path)
    finally:
        remove(partial)


def _flush(path: Path) -> None:
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace `path`'s content as a whole; a reader sees the old text or the new, never less."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
        partial.chmod(mode)


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder; no error where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Delete what interrupted runs left unfinished of `path`; its lock must be held."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        remove(leftover)


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, where `name` comes from outside; ValueError where it would leave `folder`.

    Backslashes and drive letters count too: archives are written on every system.
    """
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ":" in name or "\0" in name or ".." in parts:
        raise ValueError(f"{name!r} leads out of its folder")
    path = folder.joinpath(*[part for part in parts if part not in ("", ".")])
    if path == folder:
        raise ValueError(f"{name!r} names no file")
    return path


def human_size(size: float) -> str:
    """Bytes as people say them, in powers of 1000: 4_700_000_000 -> '4.7 GB'."""
    for unit in ("B", "kB", "MB"):
        if size < 999.95:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
