from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from tasks.errors import ModelError
from tasks.gguf_header import read_header, read_prefix
from tasks.quantization import TENSOR_TYPES

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10


def packed(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return packed(key) + struct.pack("<I", kind) + value


def text(key: str, value: str | bytes) -> bytes:
    return entry(key, STRING, packed(value))


def uint32(key: str, value: int) -> bytes:
    return entry(key, UINT32, struct.pack("<I", value))


def strings(key: str, values: list[str], count: int | None = None) -> bytes:
    start = struct.pack("<IQ", STRING, len(values) if count is None else count)
    return entry(key, ARRAY, start + b"".join(map(packed, values)))


def tensor(name: str | bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return packed(name) + shape + struct.pack("<IQ", kind, offset)


def head(tensors: int, entries: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


LLAMA = text("general.architecture", "llama")


def raw_gguf(entries: list[bytes], tensors: list[bytes] = [], data: int = 0) -> bytes:  # noqa: B006
    header = head(len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def real_gguf(path: Path, vocabulary: int = 2000) -> Path:
    """A GGUF written by the reference implementation."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny Überllama")
    writer.add_context_length(2048)
    writer.add_block_count(2)
    writer.add_embedding_length(256)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_add_bos_token(True)
    writer.add_array("llama.attention.head_count_kv", [2, 4])
    writer.add_token_list([f"token{number}" for number in range(vocabulary)])
    writer.add_token_scores([float(number) for number in range(vocabulary)])
    writer.add_tensor("token_embd.weight", np.ones((10, 256), dtype=np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(3, dtype=np.float32))
    blocks = gguf.quantize(np.ones((4, 256), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_the_reference_writes_is_read_back(tmp_path: Path) -> None:
    header = read_header(real_gguf(tmp_path / "a.gguf"))
    assert (header.version, header.architecture, header.name) == (3, "llama", "Tiny Überllama")
    assert (header.context_length, header.block_count, header.embedding_length) == (2048, 2, 256)
    assert (header.file_type, header.quantization) == (15, "Q4_K_M")
    assert header.tensor_count == 3
    assert header.parameters == 2560 + 3 + 1024
    assert header.tensor_types == {"F32": 4 * 2563, "Q8_0": 1024 // 32 * 34}
    assert header.tensor_bytes == 4 * 2563 + 1024 // 32 * 34
    assert header.metadata["llama.attention.head_count_kv"] == (2, 4)
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert "tokenizer.ggml.tokens" not in header.metadata
    assert header.vocabulary_size == 2000
    assert header.array_lengths["tokenizer.ggml.scores"] == 2000
    assert (header.kind, header.split_count, header.split_number) == ("model", 1, 0)
    assert header.unknown_types == ()


def test_a_header_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    words = [f"{number:x}" * (1 + number % 40) for number in range(60_000)]
    entries = [LLAMA, strings("tokenizer.ggml.tokens", words), uint32("llama.block_count", 7)]
    content = raw_gguf([*entries, text("long", "x" * 3_000_000)], [tensor("a", (32,))], 128)
    header = read_header(written(tmp_path / "a.gguf", content))
    assert header.vocabulary_size == 60_000
    assert header.block_count == 7
    assert header.text("long") == "x" * 3_000_000
    assert header.parameters == 32


def test_only_the_header_of_a_huge_file_is_read(tmp_path: Path) -> None:
    rows = 10**7
    content = raw_gguf([LLAMA], [tensor("a", (4096, rows), 1)])
    path = written(tmp_path / "a.gguf", content)
    os.truncate(path, len(content) + 4096 * rows * 2)
    assert read_header(path).tensor_bytes == 4096 * rows * 2


def test_tensor_types_are_those_of_the_reference() -> None:
    reference = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    # The reference counts two 32-bit scales per Q8_1 block; in llama.cpp they have 16 bits.
    assert reference.pop(gguf.GGMLQuantizationType.Q8_1) == ("Q8_1", 32, 40)
    assert {kind: TENSOR_TYPES.get(kind) for kind in reference} == reference


def test_without_a_file_type_the_tensors_tell(tmp_path: Path) -> None:
    tensors = [tensor("a", (32,)), tensor("b", (256, 8), 12, offset=128)]
    header = read_header(written(tmp_path / "a.gguf", raw_gguf([LLAMA], tensors, 128 + 8 * 144)))
    assert (header.file_type, header.quantization) == (None, "Q4_K")


def test_a_tensor_type_of_the_future_is_accepted(tmp_path: Path) -> None:
    tensors = [tensor("a", (32,), 77), tensor("b", (32,), 0, offset=4096)]
    header = read_header(written(tmp_path / "a.gguf", raw_gguf([LLAMA], tensors, 4096 + 128)))
    assert header.unknown_types == (77,)
    assert header.tensor_bytes == 128


def test_later_parts_of_a_split_model_need_no_architecture(tmp_path: Path) -> None:
    number = entry("split.no", 2, struct.pack("<H", 1))
    count = entry("split.count", 2, struct.pack("<H", 3))
    header = read_header(written(tmp_path / "a.gguf", raw_gguf([number, count])))
    assert (header.architecture, header.split_number, header.split_count) == ("", 1, 3)


def test_odd_bytes_in_a_description_do_no_harm(tmp_path: Path) -> None:
    content = raw_gguf([LLAMA, text("general.description", b"caf\xe9")])
    assert (
        read_header(written(tmp_path / "a.gguf", content)).text("general.description")
        == "caf\ufffd"
    )


def test_a_context_length_of_the_wrong_type_is_none(tmp_path: Path) -> None:
    content = raw_gguf([LLAMA, text("llama.context_length", "many")])
    assert read_header(written(tmp_path / "a.gguf", content)).context_length is None


ZIP = b"PK\x03\x04" + bytes(60)
SAFETENSORS = struct.pack("<Q", 40) + b'{"a":{"dtype":"F32","shape":[1]}}' + bytes(40)
DAMAGED = {
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "starts with zeros"),
    "html": (b"\n<!DOCTYPE html><html>", "looks like an HTML page: the download was an error"),
    "html without doctype": (b"<html><body>404", "looks like an HTML page"),
    "xml": (b'<?xml version="1.0"?><Error>', "looks like an XML page"),
    "zip": (ZIP, "looks like a ZIP archive"),
    "pickle": (b"\x80\x02}q\x01", "looks like a Python pickle"),
    "safetensors": (SAFETENSORS, "looks like safetensors"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
    "json": (b'{"error": "x"}', "looks like JSON"),
    "old format": (b"tjgg\x01\0\0\0", "GGML file of 2023"),
    "gzip": (b"\x1f\x8b\x08\0", "gzip"),
    "text": (b"Entry not found\n", "is text: 'Entry not found'"),
    "unknown": (b"\xff\xfe\xfd\xfc\x01", "instead of b'GGUF'"),
    "three bytes": (b"GGU", "truncated"),
    "magic only": (b"GGUF", "truncated or damaged\n  why: the format version"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is a big-endian GGUF"),
    "version 0": (head(0, 0, version=0), "is of GGUF version 0"),
    "version 1": (head(0, 0, version=1), "is of GGUF version 1"),
    "version 4": (head(0, 0, version=4), "newer llama.cpp"),
    "counts cut": (head(1, 1)[:-3], "the number of tensors"),
    "too many tensors": (head(2**60, 0), f"claims {2**60} tensors"),
    "too many entries": (head(0, 2**63), f"{2**63} metadata entries"),
    "key too long": (head(0, 1) + struct.pack("<Q", 2**62) + bytes(64), "metadata entry 1 of 1"),
    "value too long": (raw_gguf([entry("a", STRING, struct.pack("<Q", 2**40))]), "entry 'a'"),
    "array too long": (raw_gguf([LLAMA, strings("words", ["x"], 2**50)]), "entry 'words'"),
    "lengths overflow": (
        raw_gguf([entry("w", ARRAY, struct.pack("<IQQ", STRING, 300, 2**64 - 1) + bytes(4000))]),
        "entry 'w'",
    ),
    "number array too long": (
        raw_gguf([LLAMA, entry("a", ARRAY, struct.pack("<IQ", UINT32, 2**62))]),
        "its header says",
    ),
    "array of arrays": (
        raw_gguf([entry("a", ARRAY, struct.pack("<IQ", ARRAY, 300))]),
        "unknown type 9",
    ),
    "unknown value type": (raw_gguf([entry("a", 13, b"\0" * 8)]), "unknown type 13"),
    "key not UTF-8": (raw_gguf([entry(b"\xff", UINT32, b"\0" * 4)]), "not UTF-8"),
    "key with zero": (raw_gguf([entry("a\0b", UINT32, b"\0" * 4)]), "has a zero byte"),
    "key twice": (raw_gguf([LLAMA, LLAMA]), "a second 'general.architecture'"),
    "key empty": (raw_gguf([uint32("", 1)]), "without a name"),
    "no architecture": (raw_gguf([uint32("a", 1)]), "no general.architecture"),
    "architecture a number": (raw_gguf([uint32("general.architecture", 1)]), "no general.archi"),
    "architecture odd": (
        raw_gguf([text("general.architecture", b"ll\xe1ma")]),
        "general.architecture is 'll",
    ),
    "alignment 3": (raw_gguf([LLAMA, uint32("general.alignment", 3)]), "not a power of 2"),
    "alignment 0": (raw_gguf([LLAMA, uint32("general.alignment", 0)]), "not a power of 2"),
    "alignment 64 bits": (
        raw_gguf([LLAMA, entry("general.alignment", UINT64, struct.pack("<Q", 32))]),
        "not of type uint32",
    ),
    "alignment a text": (raw_gguf([LLAMA, text("general.alignment", "32")]), "not of type uint32"),
    "five dimensions": (raw_gguf([LLAMA], [tensor("a", (1,) * 5)], 64), "has 5 dimensions"),
    "huge dimension": (raw_gguf([LLAMA], [tensor("a", (2**62, 4))], 64), "a dimension of"),
    "tensor twice": (
        raw_gguf([LLAMA], [tensor("a", (8,)), tensor("a", (8,), offset=32)], 64),
        "name of tensor 'a' is there twice",
    ),
    "tensor name too long": (raw_gguf([LLAMA], [tensor("a" * 64, (8,))], 64), "longer than 63"),
    "tensor name not UTF-8": (raw_gguf([LLAMA], [tensor(b"\xff", (8,))], 64), "not UTF-8"),
    "row and block": (raw_gguf([LLAMA], [tensor("a", (100,), 12)], 64), "multiple of Q4_K's 256"),
    "removed type": (raw_gguf([LLAMA], [tensor("a", (32,), 31)], 64), "no longer reads"),
    "type absurd": (raw_gguf([LLAMA], [tensor("a", (32,), 2**31)], 64), f"of type {2**31}"),
    "offset": (raw_gguf([LLAMA], [tensor("a", (8,), offset=32)], 64), "offset 32 instead of 0"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_makes_a_file_unusable_is_named(case: str, tmp_path: Path) -> None:
    content, expected = DAMAGED[case]
    path = written(tmp_path / "a.gguf", content)
    with pytest.raises(ModelError) as failure:
        read_header(path)
    assert str(failure.value).startswith(f"{path} ")
    assert expected in str(failure.value)


def test_missing_weights_are_counted(tmp_path: Path) -> None:
    content = raw_gguf([LLAMA], [tensor("a", (1000,))], 4000)
    path = written(tmp_path / "a.gguf", content[:-1])
    with pytest.raises(ModelError) as failure:
        read_header(path)
    assert f"it has {len(content) - 1} bytes, its header says {len(content)}" in str(failure.value)
    assert read_header(written(path, content)).parameters == 1000


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone.gguf")
    for name, expected in {
        "missing.gguf": "does not exist",
        "link": "a link to gone.gguf",
        ".": "is a folder",
        "pipe": "is not a regular file",
        "a\0b": "cannot be read",
        "x" * 300: "cannot be read",
    }.items():
        with pytest.raises(ModelError) as failure:
            read_header(tmp_path / name)
        assert expected in str(failure.value)


def test_a_gibibyte_of_zeros_and_lengths_that_lie_in_huge_files(tmp_path: Path) -> None:
    """In a sparse file every absurd length fits; only the limit on a header's size helps."""
    endless = head(1, 2) + LLAMA + entry("words", ARRAY, struct.pack("<IQ", STRING, 2**34))
    long_text = head(1, 2) + LLAMA + entry("text", STRING, struct.pack("<Q", 2**36))
    for start, expected in (
        (b"", "starts with zeros"),
        (endless, "'words' goes on for"),
        (long_text, "'text' goes on for"),
    ):
        path = written(tmp_path / "a.gguf", start)
        os.truncate(path, 2 ** (30 if not start else 38))
        with pytest.raises(ModelError) as failure:
            read_header(path)
        assert expected in str(failure.value)


def test_cut_anywhere_it_is_refused(tmp_path: Path) -> None:
    path = real_gguf(tmp_path / "a.gguf", vocabulary=300)
    size = path.stat().st_size
    lengths = [size - 32, *range(size - 64, 2048, -101), *range(2047, -1, -1)]
    for length in lengths:
        os.truncate(path, length)
        with pytest.raises(ModelError):
            read_header(path)


def test_damaged_anywhere_it_is_read_or_refused(tmp_path: Path) -> None:
    path = real_gguf(tmp_path / "a.gguf", vocabulary=300)
    content = path.read_bytes()
    header_size = len(content) - read_header(path).tensor_bytes
    randomness = random.Random(20_260)
    extremes = [0, 1, 255, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(randomness.choice((1, 1, 1, 4))):
            place = randomness.randrange(header_size)
            if randomness.random() < 0.5:
                damaged[place] = randomness.randrange(256)
            else:
                damaged[place : place + 8] = struct.pack("<Q", randomness.choice(extremes))
        try:
            read_header(written(path, bytes(damaged)))
            outcomes["read"] += 1
        except ModelError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_of_a_files_start_all_that_is_there_is_read(tmp_path: Path) -> None:
    path = real_gguf(tmp_path / "a.gguf")
    content, whole = path.read_bytes(), read_header(path)
    for data in (content, content[: len(content) - whole.tensor_bytes]):
        start = read_prefix(data)
        assert (start.metadata, start.array_lengths) == (whole.metadata, whole.array_lengths)
        assert (start.tensor_count, start.tensor_bytes) == (3, 0)
    tokens = content.index(b"tokenizer.ggml.tokens") + len("tokenizer.ggml.tokens")
    cut = read_prefix(content[: tokens + 16 + 100])
    assert (cut.architecture, cut.block_count, cut.vocabulary_size) == ("llama", 2, 2000)
    assert cut.metadata["llama.attention.head_count_kv"] == (2, 4)
    assert read_prefix(content[: tokens + 15]).vocabulary_size is None


def test_of_a_file_cut_anywhere_the_start_says_nothing_wrong(tmp_path: Path) -> None:
    path = real_gguf(tmp_path / "a.gguf", vocabulary=300)
    content, whole = path.read_bytes(), read_header(path)
    for length in range(24, 2048):
        start = read_prefix(content[:length])
        assert start.metadata.items() <= whole.metadata.items()
        assert start.array_lengths.items() <= whole.array_lengths.items()
    for length in range(24):
        with pytest.raises(ModelError):
            read_prefix(content[:length])


def test_what_is_no_ggufs_start() -> None:
    for data, expected in ((b"", "the file"), (ZIP, "looks like a ZIP"), (head(0, 0, 4), "newer")):
        with pytest.raises(ModelError) as failure:
            read_prefix(data)
        assert expected in str(failure.value)
    assert read_prefix(head(1, 2**63) + LLAMA).architecture == "llama"
    damaged = head(0, 3) + LLAMA + entry(b"\xff", UINT32, b"\0" * 4) + uint32("a", 1)
    assert read_prefix(damaged).metadata == {"general.architecture": "llama"}
