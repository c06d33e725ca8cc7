"""Windows has no compile step: the prebuilt programs are checked and unpacked instead."""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.errors import SourceError, StorageError
from tasks.files import PARTIAL, human_size, inside, remove, storage, sweep

PROGRAMS = ("llama-server.exe", "llama-quantize.exe")

_MAX_BYTES = 2_000_000_000
"""What an archive may unpack to: forty times what the pinned one does."""
_CHUNK = 1 << 20
_FETCH_AGAIN = "fetch it again: 'doit forget vendor', then repeat the command"

# What a build is made of, and nothing a Windows file system reads in a way of its own: no leading
# dot (our own .state.json and .lock live there), no final dot or blank (dropped silently), no
# device such as NUL.
_PLAIN_PART = re.compile(r"\w[\w.+-]*(?<!\.)", re.ASCII)
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
)
"""What zipfile raises, by version and place, over an archive that is not as it should be."""


def unpack_prebuilt(archive: Path, folder: Path, wanted: Collection[str] = PROGRAMS) -> list[Path]:
    """Unpack a zip of prebuilt programs into `folder`; the files' paths, sorted.

    Each file is verified (size, CRC) before the first takes its final name. Programs and
    libraries directly in `folder` that the archive does not hold are of another version, and
    would be loaded: they are removed. All else in `folder` stays.

    Raises SourceError over an archive that is damaged, unsafe or lacks a name in `wanted`, and
    StorageError where `folder` cannot be written.
    """
    with _opened(archive) as source, storage(folder):
        members = plan(archive, source.infolist())
        missing = [name for name in wanted if name not in members]
        if missing:
            raise SourceError(
                f"{archive.name} holds no {' and no '.join(missing)}",
                "it is not a complete Windows build of llama.cpp",
                _FETCH_AGAIN,
            )
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder / "prebuilt")
        unpacked = folder / f".prebuilt.{os.getpid()}{PARTIAL}"
        try:
            for name, member in members.items():
                _copy(source, member, inside(unpacked, name))
            # Programs last: a run cut short here leaves none that would start without its library.
            for name in sorted(members, key=lambda name: (name in wanted, name)):
                _place(inside(unpacked, name), inside(folder, name))
        finally:
            remove(unpacked)
        _remove_other_versions(folder, members)
    return sorted(inside(folder, name) for name in members)


def plan(archive: Path, entries: Iterable[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """The files among `entries` by name; SourceError where one is not safe to unpack."""
    files: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()
    folders: set[str] = set()
    for entry in entries:
        # zipfile cleans `filename` up; what the archive really says stands in `orig_filename`.
        written = entry.orig_filename
        name = written.rstrip("/")
        if reason := _unsafe(entry, name):
            raise _refusal(archive, f"{written!r} {reason}")
        # Names that differ only by case are one file on Windows and macOS.
        key = name.casefold()
        parts = key.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        if entry.is_dir():
            folders.add(key)
        elif key in seen:
            raise _refusal(archive, f"{written!r} is in it twice")
        else:
            seen.add(key)
            files[name] = entry
    if both := seen & folders:
        raise _refusal(archive, f"{min(both)!r} is both a file and a folder")
    size = sum(entry.file_size for entry in files.values())
    if size > _MAX_BYTES:
        raise _refusal(
            archive, f"it unpacks to {human_size(size)}, more than {human_size(_MAX_BYTES)}"
        )
    return files


def _unsafe(entry: zipfile.ZipInfo, name: str) -> str:
    """What is wrong with an entry, or nothing."""
    try:
        inside(Path(), name)
    except ValueError:
        return "leads out of its folder"
    if not all(_PLAIN_PART.fullmatch(part) for part in name.split("/")):
        return "is not a plain file name"
    if any(_DEVICE.fullmatch(part) for part in name.split("/")):
        return "is the name of a device"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in an unusual way"
    return ""


def _refusal(archive: Path, why: str) -> SourceError:
    return SourceError(
        f"{archive.name} is not safe to unpack",
        why,
        "do not use this file; return to the llama.cpp version that the project pins",
    )


def _damage(archive: Path, error: Exception) -> SourceError:
    return SourceError(
        f"{archive.name} is damaged", str(error) or type(error).__name__, _FETCH_AGAIN
    )


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    try:
        source = zipfile.ZipFile(archive)
        declared = _declared_entries(archive)
    except _DAMAGED as error:
        raise _damage(archive, error) from error
    except OSError as error:
        # A damaged offset, too: zipfile seeks before the start of the file.
        why = error.strerror or str(error)
        raise SourceError(f"{archive} cannot be read", why, _FETCH_AGAIN) from error
    with source:
        try:
            entries = source.infolist()
            if len(entries) != declared:
                raise zipfile.BadZipFile(f"{declared} entries declared, {len(entries)} found")
            if any(entry.header_offset < 0 for entry in entries):
                raise zipfile.BadZipFile("an entry starts before the file does")
            yield source
        except _DAMAGED as error:
            raise _damage(archive, error) from error


def _declared_entries(archive: Path) -> int:
    """The number of entries in a zip's end record.

    zipfile reads none of it: a damaged length there or in an entry loses entries silently.
    """
    with open(archive, "rb") as file:
        # The record, and the longest comment that can follow it.
        file.seek(-min(archive.stat().st_size, 22 + 0xFFFF), os.SEEK_END)
        end = file.read()
    at = end.rindex(b"PK\5\6")
    return int.from_bytes(end[at + 10 : at + 12], "little")


def _copy(source: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Unpack one file to disk. zipfile stops at the declared size and compares the CRC there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with source.open(member) as packed, open(target, "wb") as file:
        while chunk := packed.read(_CHUNK):
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if size != member.file_size:
        raise zipfile.BadZipFile(
            f"{member.filename} has {size} bytes, {member.file_size} were declared"
        )


def _place(unpacked: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(unpacked, target)
    except OSError as error:
        # Windows does not let go of a program or library that runs.
        raise StorageError(
            f"cannot replace {target}",
            error.strerror or str(error),
            f"stop the servers that run from {target.parent}, then repeat the command",
        ) from error


def _remove_other_versions(folder: Path, members: Collection[str]) -> None:
    # llama.cpp loads every ggml-cpu-*.dll that lies beside the program to find the fastest.
    current = {name.casefold() for name in members}
    for path in folder.iterdir():
        if path.suffix.lower() in (".exe", ".dll") and path.name.casefold() not in current:
            path.unlink()
