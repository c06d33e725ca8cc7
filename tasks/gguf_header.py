"""What a GGUF file says of itself, and every reason why it cannot be used. Reads no weights."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from struct import Struct

from tasks.errors import ModelError
from tasks.gguf_format import (
    AGAIN,
    NEWER_CONVERSION,
    U32,
    Reader,
    Unusable,
    Value,
    read_metadata,
    read_tensors,
)
from tasks.quantization import file_type_name

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT = 32
_LEAST_ENTRY = 8 + 1 + 4 + 1
_LEAST_TENSOR = 8 + 4 + 4 + 8
_COUNTS = Struct("<QQ")
_ARRAY_TYPE = U32.pack(9)


@dataclass(frozen=True)
class GgufHeader:
    """The header of one GGUF file; of the parts of a split model only the first has it all."""

    version: int
    metadata: Mapping[str, Value]
    """Scalars, strings and arrays of up to 256 elements."""
    array_lengths: Mapping[str, int]
    """Elements of every array, kept or not."""
    tensor_count: int
    parameters: int
    """Weights in all tensors of this file."""
    tensor_bytes: int
    """Bytes of all tensors whose type is known."""
    tensor_types: Mapping[str, int]
    """Bytes per tensor type ('Q4_K')."""
    unknown_types: tuple[int, ...]
    """Tensor types that only a newer llama.cpp can know; their sizes could not be checked."""

    def text(self, key: str) -> str:
        """A metadata string, '' where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def integer(self, key: str) -> int | None:
        """A metadata integer, None where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def of_architecture(self, key: str) -> int | None:
        """A metadata integer whose key starts with the architecture's name."""
        return self.integer(f"{self.architecture}.{key}")

    @property
    def architecture(self) -> str:
        """As 'llama'; '' only in later parts of a split model."""
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        """What the model calls itself, or ''."""
        return self.text("general.name")

    @property
    def kind(self) -> str:
        """'model', 'adapter', 'mmproj', …"""
        return self.text("general.type") or "model"

    @property
    def file_type(self) -> int | None:
        """The number of the quantization, where the file gives one."""
        return self.integer("general.file_type")

    @property
    def quantization(self) -> str:
        """As 'Q4_K_M'; the tensor type with the most bytes where the file does not say."""
        if self.file_type is not None:
            return file_type_name(self.file_type)
        return max(self.tensor_types, key=lambda name: self.tensor_types[name], default="unknown")

    @property
    def context_length(self) -> int | None:
        """Tokens the model was trained for."""
        length = self.of_architecture("context_length")
        return length if length is not None and length > 0 else None

    @property
    def block_count(self) -> int | None:
        """Layers."""
        return self.of_architecture("block_count")

    @property
    def embedding_length(self) -> int | None:
        """Width of the hidden state."""
        return self.of_architecture("embedding_length")

    @property
    def vocabulary_size(self) -> int | None:
        """Tokens in the vocabulary."""
        return self.array_lengths.get("tokenizer.ggml.tokens")

    @property
    def split_count(self) -> int:
        """Files the model is split into; 1 where it is whole."""
        return self.integer("split.count") or 1

    @property
    def split_number(self) -> int:
        """Which part of a split model this is, from 0."""
        return self.integer("split.no") or 0


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file, and that its weights are all there.

    Raises ModelError, and nothing else, whatever the file holds.
    """
    try:
        size = _size_of_regular_file(path)
        with open(path, "rb", buffering=0) as file:
            return _read(Reader(file, size))
    except Unusable as error:
        raise ModelError(f"{path} {error.problem}", error.why, error.fix) from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ModelError(f"{path} cannot be read", why, "check the path and its owner") from error


def _size_of_regular_file(path: Path) -> int:
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        link = f"it is a link to {os.readlink(path)}, which is gone" if path.is_symlink() else ""
        raise Unusable("does not exist", link, "check the path") from error
    if stat.S_ISDIR(status.st_mode):
        raise Unusable("is a folder", "", "name a .gguf file, or use safetensors-dir= for folders")
    if not stat.S_ISREG(status.st_mode):
        raise Unusable("is not a regular file", "", "name a .gguf file")
    if not status.st_size:
        raise Unusable("is empty")
    return status.st_size


def _read_start(reader: Reader) -> tuple[int, int, int]:
    """The version, and the numbers of tensors and of metadata entries."""
    start = reader.peek(512)
    if not start.startswith(_MAGIC[: len(start)]):
        raise Unusable("is not a GGUF file", *_what_it_is(start))
    reader.skip(len(_MAGIC))
    version = _read_version(reader)
    reader.field = "the number of tensors and of metadata entries"
    tensor_count, entry_count = reader.take(_COUNTS)
    return version, tensor_count, entry_count


def _read(reader: Reader) -> GgufHeader:
    version, tensor_count, entry_count = _read_start(reader)
    least = reader.position + entry_count * _LEAST_ENTRY + tensor_count * _LEAST_TENSOR
    if least > reader.size:
        raise Unusable(
            "is truncated or damaged",
            f"it claims {tensor_count} tensors and {entry_count} metadata entries, "
            f"too many for its {reader.size} bytes",
        )
    metadata, array_lengths = read_metadata(reader, entry_count)
    alignment = _alignment(metadata)
    _check_architecture(metadata)
    tensors = read_tensors(reader, tensor_count, alignment)
    data = -(-reader.position // alignment) * alignment
    needed = data + tensors.end if tensor_count else reader.position
    if needed > reader.size:
        raise Unusable(
            "is truncated", f"it has {reader.size} bytes, its header says {needed} are needed"
        )
    return GgufHeader(
        version,
        metadata,
        array_lengths,
        tensor_count,
        tensors.parameters,
        sum(tensors.bytes_by_type.values()),
        tensors.bytes_by_type,
        tuple(sorted(tensors.unknown_types)),
    )


def read_prefix(data: bytes, name: str = "the file") -> GgufHeader:
    """What the first bytes of a GGUF say, as far as they go, the length of a cut list included.

    Nothing of its tensors. Raises ModelError where it is no GGUF.
    """
    reader = Reader(io.BytesIO(data), len(data))
    try:
        version, tensor_count, entry_count = _read_start(reader)
    except Unusable as error:
        raise ModelError(f"{name} {error.problem}", error.why, error.fix) from error
    metadata, array_lengths = dict[str, Value](), dict[str, int]()
    for _ in range(entry_count):
        entry = reader.position
        try:
            values, lengths = read_metadata(reader, 1)
        except Unusable:
            key, _, rest = data[entry + 8 :].partition(_ARRAY_TYPE)
            if len(key) == int.from_bytes(data[entry : entry + 8], "little") and len(rest) >= 12:
                array_lengths[key.decode(errors="replace")] = int.from_bytes(rest[4:12], "little")
            break
        metadata.update(values)
        array_lengths.update(lengths)
    return GgufHeader(version, metadata, array_lengths, tensor_count, 0, 0, {}, ())


_OTHER_FORMATS = (
    (b"PK\3\4", "a ZIP archive, as PyTorch checkpoints are"),
    (b"\x80\2", "a Python pickle, as old PyTorch checkpoints are"),
    (b"\x80\4", "a Python pickle"),
    (b"version https://git-lfs", "a git-lfs pointer: the file itself was never fetched"),
    (b"lmgg", "a GGML file of 2023"),
    (b"fmgg", "a GGML file of 2023"),
    (b"tjgg", "a GGML file of 2023"),
    (b"FUGG", "a big-endian GGUF"),
    (b"\x1f\x8b", "gzip-compressed"),
    (b"\xfd7zXZ", "xz-compressed"),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed"),
    (b"<?xml", "an XML page: the download was an error page"),
    (b"<!doctype html", "an HTML page: the download was an error page"),
    (b"<html", "an HTML page: the download was an error page"),
    (b"{", "JSON text"),
)


def _what_it_is(start: bytes) -> tuple[str, str]:
    """Why a file with this start is no GGUF, and what to do."""
    if start[8:10] == b'{"':
        return "it looks like safetensors", "use safetensors-dir= with the folder it is in"
    if not any(start):
        return "it starts with zeros: a download that was not finished", AGAIN
    text = start.lstrip().lower()
    for magic, name in _OTHER_FORMATS:
        if start.startswith(magic) or text.startswith(magic):
            return f"it looks like {name}", "get the .gguf file of this model"
    if start.isascii() and text.replace(b"\n", b" ").decode("ascii").isprintable():
        line = start.lstrip().splitlines()[0].decode("ascii")
        return f"it is text: {line[:80]!r}", AGAIN
    return f"it starts with {start[:4]!r} instead of {_MAGIC!r}", "name a .gguf file"


def _read_version(reader: Reader) -> int:
    reader.field = "the format version"
    (version,) = reader.take(U32)
    if version in _VERSIONS:
        return version
    if not version & 0xFFFF and version:
        raise Unusable(
            "is a big-endian GGUF",
            "this machine is little-endian",
            "get the usual, little-endian file of this model",
        )
    if version == 1:
        raise Unusable("is of GGUF version 1", "llama.cpp reads 2 and 3", NEWER_CONVERSION)
    raise Unusable(
        f"is of GGUF version {version}",
        "llama.cpp reads 2 and 3",
        "check the file, or use a newer llama.cpp",
    )


def _alignment(metadata: Mapping[str, Value]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise Unusable("is damaged", f"general.alignment is {alignment}, not a power of 2")
    return alignment


def _check_architecture(metadata: Mapping[str, Value]) -> None:
    architecture = metadata.get("general.architecture")
    is_later_part = bool(metadata.get("split.no")) and architecture is None
    if isinstance(architecture, str) and not (
        architecture.isascii() and architecture.isprintable()
    ):
        raise Unusable("is damaged", f"its general.architecture is {architecture[:40]!r}")
    if not is_later_part and not (isinstance(architecture, str) and architecture):
        raise Unusable(
            "is not a model",
            "its metadata has no general.architecture",
            "name the GGUF of a model; other data, as importance matrices, can be GGUF files too",
        )
