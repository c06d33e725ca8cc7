"""Quantization labels: what a GGUF's name says of its type, and which one a user means."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.quantization import parse_quantization

FLOATS = ("F16", "BF16", "F32")

_SEP = r"[-_.]?"
_GRAMMAR = rf"""
    (?:(?P<flavour>UD|i1){_SEP})?
    (?P<type>
        B?F16 | FP16 | F32 | FP32
      | Q[1-8]{_SEP}[01] (?: {_SEP}4{_SEP}[48] | {_SEP}8{_SEP}8 | {_SEP}X?L )?
      | Q[1-8]{_SEP}K (?: {_SEP}(?: XXL | XL | XS | L | M | S ) )?
      | IQ[1-6]{_SEP}(?: XXS | XS | S | M | XL | L | NL | K (?: SS | S | T | L )? )
        (?: {_SEP}XL | {_SEP}4{_SEP}4 )?
      | TQ[12]{_SEP}0
      | (?: MXFP4 | NVFP4 ) (?: {_SEP}MOE )?
      | Q[2-8]
    )
"""
_IN_A_NAME = re.compile(rf"(?<![A-Za-z0-9]){_GRAMMAR}(?![A-Za-z0-9])", re.I | re.X)
_ALONE = re.compile(_GRAMMAR, re.I | re.X)
# 'Q4_K_S' has three pieces, but ik_llama's 'IQ4_KS' two.
_PIECES = re.compile(r"MXFP4|NVFP4|B?F\d+|[TI]?Q\d|XXS|XXL|XS|XL|NL|MOE|(?<=IQ\d)K[A-Z]+|[A-Z]|\d")
_SPLIT = re.compile(r"-\d{5}-of-\d{5}$", re.I)
_SAME = {"FP16": "F16", "FP32": "F32"}

# What people write short, and names that say the same in other words.
_ALIASES = {
    "Q2": "Q2_K",
    "Q3": "Q3_K_M",
    "Q4": "Q4_K_M",
    "Q5": "Q5_K_M",
    "Q6": "Q6_K",
    "Q8": "Q8_0",
    "Q3_K": "Q3_K_M",
    "Q4_K": "Q4_K_M",
    "Q5_K": "Q5_K_M",
    "MXFP4": "MXFP4_MOE",
}


@dataclass(frozen=True)
class Label:
    """A quantization as a name spells it."""

    text: str
    """As it is written: 'UD-Q4_K_XL', 'fp16'."""
    type: str
    """In one spelling, without what stands before it: 'Q4_K_XL', 'F16'."""
    flavour: str
    """'UD' (Unsloth's mixes), 'I1' (made with an importance matrix) or ''."""

    @property
    def alias(self) -> str:
        """The type in its usual name: 'Q4_K_M' for 'Q4_K'."""
        return _ALIASES.get(self.type, self.type)


def _label(match: re.Match[str]) -> Label:
    squeezed = re.sub(r"[-_.]", "", match["type"].upper())
    squeezed = _SAME.get(squeezed, squeezed)
    return Label(match[0], "_".join(_PIECES.findall(squeezed)), (match["flavour"] or "").upper())


def parse_label(text: str) -> Label | None:
    """The label that `text` is, in any case and with any separators ('q4km'), or None."""
    match = _ALONE.fullmatch(text.strip())
    return _label(match) if match else None


def label_of(name: str) -> Label | None:
    """The label in a GGUF's path; a folder's where the file's own name has none."""
    for part in reversed(_stem(name).split("/")):
        if found := [_label(match) for match in _IN_A_NAME.finditer(part)]:
            # 'x-f16-Q4_K_M': the 16 bits are those of the embeddings, or what it was made from.
            return next((each for each in reversed(found) if each.type not in FLOATS), found[-1])
    return None


def family(name: str) -> str:
    """What a GGUF's base name says besides its label: which model it is."""
    base = _stem(name).rsplit("/", 1)[-1]
    return re.sub(r"[-_. ]+", "-", _IN_A_NAME.sub("", base)).strip("-").lower()


def _stem(name: str) -> str:
    stem = name[: -len(".gguf")] if name.lower().endswith(".gguf") else name
    return _SPLIT.sub("", stem)


def match_rank(asked: str, label: Label) -> int | None:
    """How well a label answers what a user asked: 0 is exact, None is not at all."""
    wanted = parse_label(asked)
    if wanted is None:
        return 0 if asked.strip().lower() == label.text.lower() else None
    if wanted.alias != label.alias:
        return None
    aliased = 0 if wanted.type == label.type else 3
    if wanted.flavour == label.flavour:
        return aliased
    # A plain one is rather meant than Unsloth's mix, which has other types in other layers.
    return aliased + (2 if label.flavour == "UD" else 1)


def quantizable(asked: str) -> str:
    """llama-quantize's name ('q4_k_m') of an asked type; Refused where it makes no such type."""
    wanted = parse_label(asked)
    return parse_quantization(wanted.alias if wanted and not wanted.flavour else asked)
