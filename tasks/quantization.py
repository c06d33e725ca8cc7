"""Quantization types: the table llama-quantize knows, and which 16 bits a checkpoint keeps."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.errors import ModelError, Refused


@dataclass(frozen=True)
class Quantization:
    """One type of llama-quantize; `file_type` is its number in GGUF's general.file_type.

    `bits_per_weight` is the average over an 8B Llama, mixed-in larger tensors included.
    """

    name: str
    file_type: int
    bits_per_weight: float
    needs_imatrix: bool = False
    aliases: tuple[str, ...] = ()

    def file_size(self, parameters: int) -> int:
        """About how many bytes a model of so many weights takes; small models take more."""
        return round(parameters * self.bits_per_weight / 8)


_IMATRIX = True

# The tool refuses a type without an importance matrix where one of its tensors (other than the
# embeddings and the output) becomes iq1_*, iq2_* or iq3_xxs, or q2_k inside q2_k_s. That makes
# iq3_xs need one too: its attention tensors become iq3_xxs. Bits per weight: llama-quantize
# --dry-run on Llama 3.1 8B shapes.
QUANTIZATIONS: dict[str, Quantization] = {
    row.name: row
    for row in (
        Quantization("q1_0", 40, 1.48),
        Quantization("q2_0", 41, 2.68),
        Quantization("q4_0", 2, 4.64),
        Quantization("q4_1", 3, 5.10),
        Quantization("mxfp4_moe", 38, 8.50),  # 4 bits for experts only, 8 for all else
        Quantization("q5_0", 8, 5.57),
        Quantization("q5_1", 9, 6.04),
        Quantization("iq2_xxs", 19, 2.38, _IMATRIX),
        Quantization("iq2_xs", 20, 2.59, _IMATRIX),
        Quantization("iq2_s", 28, 2.74, _IMATRIX),
        Quantization("iq2_m", 29, 2.93, _IMATRIX),
        Quantization("iq1_s", 24, 2.00, _IMATRIX),
        Quantization("iq1_m", 31, 2.15, _IMATRIX),
        Quantization("tq1_0", 36, 2.19),
        Quantization("tq2_0", 37, 2.52),
        Quantization("q2_k", 10, 3.16),
        Quantization("q2_k_s", 21, 2.97, _IMATRIX),
        Quantization("iq3_xxs", 23, 3.37, _IMATRIX),
        Quantization("iq3_s", 26, 3.66),
        Quantization("iq3_m", 27, 3.76),
        Quantization("iq3_xs", 22, 3.50, _IMATRIX),
        Quantization("q3_k_s", 11, 3.64),
        Quantization("q3_k_m", 12, 4.00, aliases=("q3_k",)),
        Quantization("q3_k_l", 13, 4.30),
        Quantization("iq4_nl", 25, 4.68),
        Quantization("iq4_xs", 30, 4.46),
        Quantization("q4_k_s", 14, 4.67),
        Quantization("q4_k_m", 15, 4.89, aliases=("q4_k",)),
        Quantization("q5_k_s", 16, 5.57),
        Quantization("q5_k_m", 17, 5.70, aliases=("q5_k",)),
        Quantization("q6_k", 18, 6.56),
        Quantization("q8_0", 7, 8.50),
        Quantization("f16", 1, 16.00),
        Quantization("bf16", 32, 16.00),
        Quantization("f32", 0, 32.00),
    )
}

USUAL = ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f16")

_BY_ALIAS = {alias: row.name for row in QUANTIZATIONS.values() for alias in row.aliases}

# Files say so, but llama-quantize cannot make them (any more).
_READ_ONLY_FILE_TYPES = {
    4: "Q4_1_SOME_F16",
    5: "Q4_2",
    6: "Q4_3",
    33: "Q4_0_4_4",
    34: "Q4_0_4_8",
    35: "Q4_0_8_8",
    39: "NVFP4",
}
_FILE_TYPE_NAMES = {
    **_READ_ONLY_FILE_TYPES,
    **{row.file_type: row.name.upper() for row in QUANTIZATIONS.values()},
}
_GUESSED = 1024
"""Bit that llama.cpp adds to a file type which the file itself did not name."""


# ggml's number: (name, weights per block, bytes per block)
TENSOR_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
REMOVED_TENSOR_TYPES = (4, 5, 31, 32, 33, 36, 37, 38)


def parse_quantization(text: str) -> str:
    """The canonical name ('q4_k_m') of a type in any case, with '-' for '_', or of its alias.

    Raises Refused, with the nearest valid name, where llama-quantize has no such type.
    """
    name = text.strip().lower().replace("-", "_")
    name = _BY_ALIAS.get(name, name)
    if name in QUANTIZATIONS:
        return name
    import difflib

    near = difflib.get_close_matches(name, [*QUANTIZATIONS, *_BY_ALIAS], n=1)
    guess = f" (did you mean '{near[0]}'?)" if near else ""
    others = ", ".join(sorted(QUANTIZATIONS.keys() - set(USUAL)))
    raise Refused(
        f"unknown quantization {text!r}{guess}",
        fix=f"the usual ones are {', '.join(USUAL)}; there are also {others}",
    )


def file_type_name(file_type: int) -> str:
    """The name ('Q4_K_M') of a number in GGUF's general.file_type."""
    number = file_type & ~_GUESSED
    return _FILE_TYPE_NAMES.get(number, f"file type {number}")


def default_intermediate(dtypes: Iterable[str]) -> str:
    """'bf16' or 'f16': what a checkpoint with these tensor types is converted to first.

    f16 ends at 65504 and drops the smallest values, so a bf16 checkpoint stays bf16; everything
    else becomes f16, which has 3 more bits of precision and is fast on every CPU.
    """
    names = {dtypes} if isinstance(dtypes, str) else set(dtypes)
    kinds = {name.lower().replace("torch.", "").replace("bfloat", "bf") for name in names}
    return "bf16" if "bf16" in kinds else "f16"


MAX_SAFETENSORS_HEADER = 100_000_000
"""Bytes; the format's own limit."""


def tensor_entries(header: bytes) -> list[dict[str, Any]]:
    """What a safetensors file's header says of each tensor; ValueError and others where it is none.

    https://huggingface.co/docs/safetensors
    """
    entries = json.loads(header.decode("utf-8"))
    return [entry for name, entry in entries.items() if name != "__metadata__"]


def safetensors_dtypes(path: Path) -> set[str]:
    """The tensor types ('BF16', 'F32', …) in a safetensors file; reads its header only.

    Raises ModelError for a file that is missing, damaged or shorter than its header says.
    """
    try:
        if not path.is_file():
            raise ModelError(f"{path} is not a file", fix="check the path")
        with open(path, "rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_SAFETENSORS_HEADER):
                raise _damaged(path, "its first 8 bytes give no possible length of a header")
            tensors = tensor_entries(file.read(length))
        dtypes = {entry["dtype"] for entry in tensors}
        ends = [operator.index(entry["data_offsets"][1]) for entry in tensors]
    except OSError as error:
        raise ModelError(f"cannot read {path}", error.strerror or str(error)) from error
    except (ValueError, RecursionError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, "its header is not the JSON of a tensor list") from error
    if not all(isinstance(dtype, str) for dtype in dtypes):
        raise _damaged(path, "its header names a tensor type that is no text")
    needed = 8 + length + max(ends, default=0)
    if needed > size:
        raise _damaged(path, f"it has {size} bytes, its header says {needed} are needed")
    return dtypes


def _damaged(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} is truncated or not a safetensors file", why, "download or copy it again"
    )
