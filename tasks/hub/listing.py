"""A repository's listing, judged by names and sizes: what is safe, what is whole, what is what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from pathlib import Path

from tasks.errors import ModelError
from tasks.files import human_size, inside
from tasks.hub.labels import Label, family, label_of
from tasks.hub.manifest import RemoteFile

_MAX_SIZE = 1 << 50
"""Bytes; no file is larger, and sums stay exact."""
_MAX_NAME = 210
"""Bytes; of one name in a path. File systems take 255; unfinished files have longer names."""
_DEVICE = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|(?:com|lpt)[0-9¹²³])(?:\..*)?", re.I)


def usable(files: Iterable[RemoteFile]) -> list[RemoteFile]:
    """The files that may be downloaded, by name: a hub's answer is not to be trusted.

    Left out are names that lead out of their folder, that some system takes for a device or
    spells otherwise, that begin with a dot (as our own state does), impossible sizes, and names
    that some file system holds to be one.
    """
    found: dict[str, RemoteFile] = {}
    refused: set[str] = set()
    for file in files:
        if not (_is_safe(file.name) and _is_size(file.size)):
            continue
        key = file.name.casefold()
        if found.setdefault(key, file).name == file.name and found[key] != file:
            refused.add(key)  # The same name with two contents: neither can be believed.
    folders = {key[:place] for key in found for place, sign in enumerate(key) if sign == "/"}
    kept = [found[key] for key in found.keys() - refused - folders]
    return sorted(kept, key=lambda file: file.name)


def _is_size(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= _MAX_SIZE


def _is_safe(name: object) -> bool:
    if not isinstance(name, str) or "\\" in name or not name.isprintable():
        return False
    try:
        inside(Path("folder"), name)
        lengths = [len(part.encode()) for part in name.split("/")]
    except ValueError:  # UnicodeEncodeError is one, too.
        return False
    return max(lengths) <= _MAX_NAME and not any(
        not part or part.startswith(".") or part.endswith((".", " ")) or _DEVICE.fullmatch(part)
        for part in name.split("/")
    )


class Kind(Enum):
    """What a GGUF is for, as far as its name tells."""

    MODEL = "a model"
    MMPROJ = "a vision or audio projector"
    ADAPTER = "a LoRA adapter"
    DRAFT = "a draft model"
    CONTROL = "a control vector"
    IMATRIX = "an importance matrix"
    VOCABULARY = "a vocabulary"


@dataclass(frozen=True)
class Candidate:
    """One GGUF of a repository, whole or in parts."""

    files: tuple[RemoteFile, ...]
    """The first part comes first."""
    missing: tuple[str, ...]
    """Names of some parts that are not there."""
    kind: Kind

    @property
    def name(self) -> str:
        """Path of the first part."""
        return self.files[0].name

    @property
    def base(self) -> str:
        """The name of its first part without the folder."""
        return self.name.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """'' for the root."""
        return self.name.rpartition("/")[0]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(file.size for file in self.files)

    @property
    def label(self) -> Label | None:
        """Its quantization, where its name says it."""
        return label_of(self.name)

    @property
    def shown(self) -> str:
        """What to call it to the user: its quantization or else its name."""
        return self.label.text if self.label else self.name


_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.I | re.S)
_SOME = 3
_LISTED = 30


def candidates(files: Sequence[RemoteFile]) -> list[Candidate]:
    """Every GGUF, parts put together, in the order of names."""
    groups: dict[tuple[str, int], dict[int, RemoteFile]] = {}
    found: list[tuple[tuple[RemoteFile, ...], tuple[str, ...]]] = []
    for file in files:
        if not file.name.lower().endswith(".gguf"):
            continue
        if match := _PART.fullmatch(file.name):
            number, count = int(match[2]), int(match[3])
            if 1 <= number <= count:
                groups.setdefault((match[1], count), {})[number] = file
        else:
            found.append(((file,), ()))
    for (stem, count), parts in groups.items():
        absent = (number for number in range(1, count + 1) if number not in parts)
        missing = tuple(
            f"{stem}-{number:05}-of-{count:05}.gguf" for number in islice(absent, _SOME)
        )
        found.append((tuple(parts[number] for number in sorted(parts)), missing))
    merged = {
        family(files[0].name) for files, _ in found if not _may_be_adapter(label_of(files[0].name))
    }
    result = [Candidate(files, gone, _kind(files[0].name, merged)) for files, gone in found]
    return sorted(result, key=lambda each: each.name)


def _word(*words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(words)})s?(?![a-z])")


_ADAPTER = _word("lora", "adapter")
_DRAFT = _word("draft", "drafter", "mtp", r"eagle-?[23]", "eagle", "nextn", "medusa")
_CONTROL = _word(r"control[-_.]?vector", "cvector")
_IMATRIX = re.compile(r"imatrix.*|.*\.imatrix")
_ADAPTER_TYPES = ("F16", "BF16", "F32", "Q8_0")


def _may_be_adapter(label: Label | None) -> bool:
    """Whether convert_lora_to_gguf makes such files; models that are called so have k-quants."""
    return label is None or label.type in _ADAPTER_TYPES


def _kind(name: str, merged: set[str]) -> Kind:
    base = name.rpartition("/")[2].lower()
    stem = base.removesuffix(".gguf")
    if "mmproj" in base:
        return Kind.MMPROJ
    if "imatrix" in base and (_IMATRIX.fullmatch(stem) or not label_of(base)):
        return Kind.IMATRIX  # Models made with one may say so in their names, too.
    if base.startswith("ggml-vocab"):
        return Kind.VOCABULARY
    if _CONTROL.search(base):
        return Kind.CONTROL
    if _ADAPTER.search(base) and family(name) not in merged:
        return Kind.ADAPTER
    return Kind.DRAFT if _DRAFT.search(base) else Kind.MODEL


def place(one: Candidate) -> tuple[int, int, int, str]:
    """What is nearer to the root, in fewer files and shorter in name comes first."""
    return (one.name.count("/"), len(one.files), len(one.name), one.name)


def incomplete(one: Candidate, repo: str) -> ModelError:
    """The error for a split GGUF of which parts are missing."""
    return ModelError(
        f"{one.shown} in {repo} is incomplete",
        f"there is no {some(one.missing)}",
        "name another quantization= or revision=, or wait until the upload is finished",
    )


def there_is(pool: Sequence[Candidate], by_name: bool = False) -> str:
    """What there is instead, as a fix."""
    return f"there is {listed(pool, by_name)}" if pool else "there are no GGUFs"


def listed(pool: Sequence[Candidate], by_name: bool = False) -> str:
    """What there is with sizes, the smallest first."""
    shown = Counter(each.shown for each in pool)
    ordered = sorted(pool, key=lambda each: (each.size, each.name))
    items = [
        f"{each.name if by_name or shown[each.shown] > 1 else each.shown} "
        f"({'incomplete' if each.missing else human_size(each.size)})"
        for each in ordered[:_LISTED]
    ]
    return ", ".join(items) + _more(len(pool) - _LISTED)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(islice(names, _SOME)) + _more(len(names) - _SOME)


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
