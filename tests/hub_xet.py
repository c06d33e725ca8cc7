"""Xet as far as a download needs it: a file as uncompressed chunks in xorbs, told to hf_xet.

Hashes are made up: the client that downloads believes them, and so must check the sha256 itself.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub import File

CHUNK = 1 << 16
"""Bytes of a chunk."""
XORB_CHUNKS = 256
"""Chunks of a xorb, so 16 MiB."""
HEADER = 8


def _xorb_hash(file: File, index: int) -> str:
    return hashlib.sha256(f"{file.xet_hash}/{index}".encode()).hexdigest()


def reconstruction(file: File, start: int, end: int, origin: str) -> dict[str, Any]:
    """What to fetch for these bytes of a file, and how to put it together."""
    terms: list[dict[str, Any]] = []
    fetches: dict[str, list[dict[str, Any]]] = {}
    first, last = start // CHUNK, -(-end // CHUNK)
    for index in range(first // XORB_CHUNKS, -(-last // XORB_CHUNKS)):
        base = index * XORB_CHUNKS
        low, high = max(first, base), min(last, base + XORB_CHUNKS)
        length = min(high * CHUNK, file.size) - low * CHUNK
        name, span = _xorb_hash(file, index), {"start": low - base, "end": high - base}
        begin = (low - base) * (HEADER + CHUNK)
        end_of_data = begin + (high - low) * HEADER + length - 1
        terms.append({"hash": name, "unpacked_length": length, "range": span})
        fetch = {
            "range": span,
            "url": f"{origin}/xorbs/{file.xet_hash}/{index}",
            "url_range": {"start": begin, "end": end_of_data},
        }
        fetches[name] = [fetch]
    offset = start - first * CHUNK
    return {"offset_into_first_range": offset, "terms": terms, "fetch_info": fetches}


def xorb(file: File, index: int) -> bytes:
    """A xorb: its chunks, each after the header that says its size and that it is not packed."""
    start = index * XORB_CHUNKS * CHUNK
    packed = b""
    for at in range(start, min(start + XORB_CHUNKS * CHUNK, file.size), CHUNK):
        chunk = file.read(at, CHUNK)
        size = struct.pack("<I", len(chunk))[:3]
        packed += b"\0" + size + b"\0" + size + chunk
    return packed
