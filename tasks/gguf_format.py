"""The parts of the GGUF format: strings, metadata entries and tensor entries, all checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from struct import Struct
from typing import BinaryIO

from tasks.quantization import REMOVED_TENSOR_TYPES, TENSOR_TYPES

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]

AGAIN = "download or copy it again"
NEWER_CONVERSION = "get a newer conversion of this model"

_MAX_DIMENSIONS = 4
_MAX_TENSOR_NAME = 63
_MAX_ELEMENTS = 2**63 - 1
_MAX_HEADER = 64 << 20
"""Bytes before the weights; a vocabulary of 256k tokens takes about 12 MB.
It bounds the time and the memory that a damaged length in a huge file can cost."""
_SHORT_ARRAY = 256
"""Elements up to which an array (a value per layer) is kept; longer ones are tokenizer lists."""
_WINDOW = 1 << 20
_MAX_TENSOR_TYPE = 255
"""Above it no llama.cpp will ever be: the file is damaged."""

U32, _U64, _TYPE_OFFSET = Struct("<I"), Struct("<Q"), Struct("<IQ")
_UINT32, _STRING, _ARRAY = 4, 8, 9
_LETTERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_SCALARS = {number: Struct(f"<{letter}") for number, letter in _LETTERS.items()}


class Unusable(Exception):
    """Why a file cannot be used: the sentence goes on after its path."""

    def __init__(self, problem: str, why: str = "", fix: str = AGAIN) -> None:
        self.problem, self.why, self.fix = problem, why, fix


class Reader:
    """Forward reading through a window; `field` is what is being read, for the messages.

    Not mmap: a file that another process cuts short would end us with SIGBUS.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self._window, self._start, self._next = b"", 0, 0
        self.field = "the header"

    @property
    def position(self) -> int:
        """Bytes from the start of the file to what is read next."""
        return self._start + self._next

    def _need(self, count: int) -> None:
        """Let the window hold at least the next `count` bytes."""
        if self._next + count <= len(self._window):
            return
        self._check_room(count)
        self._start, self._next = self.position, 0
        self._file.seek(self._start)
        wanted = min(max(count, _WINDOW), self.size - self._start)
        self._window = b""
        while len(self._window) < count:
            chunk = self._file.read(wanted - len(self._window))
            if not chunk:
                raise Unusable("is truncated", "it became shorter while it was read")
            self._window += chunk

    def _check_room(self, count: int) -> None:
        """Refuse before reading, or counting to, what cannot be there."""
        end = self.position + count
        if end > self.size:
            raise Unusable(
                "is truncated or damaged",
                f"{self.field} needs {end} bytes, the file has {self.size}",
            )
        if end > _MAX_HEADER:
            raise Unusable(
                "is damaged", f"{self.field} goes on for {end} bytes, which no real header does"
            )

    def peek(self, count: int) -> bytes:
        """The next bytes, as many as there are, without going on."""
        self._need(min(count, self.size - self.position))
        return self._window[self._next : self._next + count]

    def take(self, layout: Struct) -> tuple[int, ...]:
        """The next numbers."""
        self._need(layout.size)
        values = layout.unpack_from(self._window, self._next)
        self._next += layout.size
        return values

    def skip(self, count: int) -> None:
        """Go on without reading; a place behind the end shows at the next field."""
        self._next += count

    def string(self) -> bytes:
        """The next string, after its length."""
        (length,) = self.take(_U64)
        self._need(length)
        text = self._window[self._next : self._next + length]
        self._next += length
        return text

    def skip_strings(self, count: int) -> None:
        """Go past an array of strings: a vocabulary has 10^5, so nothing here may be slow."""
        self._check_room(8 * count)
        length_at = _U64.unpack_from
        first = 0
        while first < count:
            self._need(8)
            window, place, number = self._window, self._next, first
            try:
                for number in range(first, count):  # noqa: B007 (read after an error)
                    place += 8 + length_at(window, place)[0]
                first = count
            except (struct.error, OverflowError):
                first = number  # which starts beyond the window
            self._next = place


def _name(raw: bytes, what: str) -> str:
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unusable("is damaged", f"{what} is not UTF-8: {raw[:40]!r}") from error
    if "\0" in name:  # llama.cpp would see the part before it, or abort
        raise Unusable("is damaged", f"{what} has a zero byte: {raw[:40]!r}")
    return name


def read_metadata(reader: Reader, count: int) -> tuple[dict[str, Value], dict[str, int]]:
    metadata: dict[str, Value] = {}
    array_lengths: dict[str, int] = {}
    seen = set()
    for number in range(1, count + 1):
        reader.field = f"metadata entry {number} of {count}"
        key = _name(reader.string(), f"the key of {reader.field}")
        if not key or key in seen:
            what = f"a second {key!r}" if key else "an entry without a name"
            raise Unusable("is damaged", f"{reader.field} is {what}")
        seen.add(key)
        reader.field = f"metadata entry {key!r}"
        (kind,) = reader.take(U32)
        if kind != _ARRAY:
            metadata[key] = _read_scalar(reader, kind)
            if key == "general.alignment" and kind != _UINT32:
                raise Unusable("is damaged", f"{reader.field} is not of type uint32")
            continue
        (kind,) = reader.take(U32)
        (length,) = reader.take(_U64)
        array_lengths[key] = length
        if length <= _SHORT_ARRAY:
            metadata[key] = tuple(_read_scalar(reader, kind) for _ in range(length))
        elif kind == _STRING:
            reader.skip_strings(length)
        else:
            reader.skip(length * _scalar(reader, kind).size)
    return metadata, array_lengths


def _scalar(reader: Reader, kind: int) -> Struct:
    if kind not in _SCALARS:
        raise Unusable("is damaged", f"{reader.field} is of unknown type {kind}")
    return _SCALARS[kind]


def _read_scalar(reader: Reader, kind: int) -> Scalar:
    if kind == _STRING:
        # llama.cpp takes any bytes here, and a model with an odd description is a good model.
        return reader.string().decode("utf-8", errors="replace")
    return reader.take(_scalar(reader, kind))[0]


@dataclass
class Tensors:
    parameters: int
    bytes_by_type: dict[str, int]
    unknown_types: set[int]
    end: int
    """Bytes from the start of the data to the end of the last tensor."""


def read_tensors(reader: Reader, count: int, alignment: int) -> Tensors:
    found = Tensors(0, {}, set(), 0)
    seen = set()
    expected: int | None = 0
    for number in range(1, count + 1):
        reader.field = f"tensor {number} of {count}"
        name = _name(reader.string(), f"the name of {reader.field}")
        reader.field = f"tensor {name[:80]!r}"
        if name in seen or len(name.encode()) > _MAX_TENSOR_NAME:
            what = "there twice" if name in seen else f"longer than {_MAX_TENSOR_NAME} bytes"
            raise Unusable("is damaged", f"the name of {reader.field} is {what}")
        seen.add(name)
        elements, row = _read_shape(reader)
        kind, offset = reader.take(_TYPE_OFFSET)
        if expected is not None and offset != expected:
            raise Unusable(
                "is damaged", f"{reader.field} is at offset {offset} instead of {expected}"
            )
        size = _tensor_bytes(reader, kind, elements, row)
        found.parameters += elements
        found.end = max(found.end, offset + (size or 0))
        if size is None:
            found.unknown_types.add(kind)
            expected = None
        else:
            type_name = TENSOR_TYPES[kind][0]
            found.bytes_by_type[type_name] = found.bytes_by_type.get(type_name, 0) + size
            expected = offset + -(-size // alignment) * alignment
    return found


def _read_shape(reader: Reader) -> tuple[int, int]:
    """The number of elements of the next tensor, in all and per row."""
    (dimensions,) = reader.take(U32)
    if dimensions > _MAX_DIMENSIONS:
        raise Unusable("is damaged", f"{reader.field} has {dimensions} dimensions")
    elements = row = 1
    for dimension in range(dimensions):
        (length,) = reader.take(_U64)
        elements *= length
        row = length if dimension == 0 else row
        if max(elements, length) > _MAX_ELEMENTS:
            raise Unusable("is damaged", f"{reader.field} claims a dimension of {length}")
    return elements, row


def _tensor_bytes(reader: Reader, kind: int, elements: int, row: int) -> int | None:
    """The size of a tensor, None for a type that only a newer llama.cpp can know."""
    if kind in TENSOR_TYPES:
        name, block, size = TENSOR_TYPES[kind]
        if row % block:
            raise Unusable(
                "is damaged", f"{reader.field} has rows of {row}, no multiple of {name}'s {block}"
            )
        return elements // block * size
    if kind in REMOVED_TENSOR_TYPES:
        raise Unusable(
            "is too old",
            f"{reader.field} is of type {kind}, which llama.cpp no longer reads",
            NEWER_CONVERSION,
        )
    if kind > _MAX_TENSOR_TYPE:
        raise Unusable("is damaged", f"{reader.field} is of type {kind}")
    return None
