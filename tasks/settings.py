"""Settings: `key=value` words and LLAMA_SERVER_* variables to one frozen Settings.

A new setting is one line in the class below: its default, its parser, its help.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.errors import Refused
from tasks.hub.labels import parse_label
from tasks.quantization import parse_quantization

ENVIRONMENT_PREFIX = "LLAMA_SERVER_"
SOURCE_KEYS = ("model", "hf-model", "gguf-path", "safetensors-dir")
COMMAND_LINE = "command line"
DEFAULT = "default"

Parser = Callable[[str, Path], Any]
"""From a value's text and the folder the user stands in; raises ValueError with the reason."""


def text(value: str, _here: Path) -> str:
    """Any text."""
    return value


def named(value: str, _here: Path) -> str:
    """Any text but none."""
    if not value.strip():
        raise ValueError("it is empty")
    return value


def path(value: str, here: Path) -> Path:
    """A path, relative to where the user stands; `~` is the home folder."""
    return Path(os.path.abspath(here / Path(named(value, here)).expanduser()))


def yes_no(value: str, _here: Path) -> bool:
    """yes or no."""
    answers = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
    if value.lower() not in answers:
        raise ValueError("it takes yes or no")
    return answers[value.lower()]


def words(value: str, _here: Path) -> tuple[str, ...]:
    """Arguments, split as a shell would."""
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise ValueError(f"a shell could not split it: {str(error).lower()}") from error


def number(low: int, high: int) -> Parser:
    """A whole number from `low` to `high`."""

    def parse(value: str, _here: Path) -> int:
        try:
            result = int(value)
        except ValueError:
            raise ValueError(f"it takes a whole number from {low} to {high}") from None
        if not low <= result <= high:
            raise ValueError(f"it takes a whole number from {low} to {high}")
        return result

    return parse


@dataclass(frozen=True)
class AutoOr:
    """What `parser` takes, or `auto` (None): llamake decides."""

    parser: Parser

    def __call__(self, value: str, here: Path) -> Any:
        """None for `auto`; raises ValueError with the reason."""
        if value.lower() == "auto":
            return None
        try:
            return self.parser(value, here)
        except ValueError as error:
            raise ValueError(f"{error}, or auto") from None


def one_of(*choices: str) -> Parser:
    """One of some words."""

    def parse(value: str, _here: Path) -> str:
        if value.lower() not in choices:
            raise ValueError(f"it takes one of {', '.join(choices)}{did_you_mean(value, choices)}")
        return value.lower()

    return parse


def quantization(value: str, _here: Path) -> str:
    """A type of llama-quantize, or one that only a repository on the hub can have."""
    try:
        return parse_quantization(value)
    except Refused:
        if parse_label(value):
            return value
        raise


def sha256(value: str, _here: Path) -> str:
    """64 hex digits."""
    digest = value.strip().lower().removeprefix("sha256:")
    if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ValueError("it takes 64 hex digits")
    return digest


def key(default: Any, parser: Parser, help: str) -> Any:
    """Declare a setting."""
    return field(default=default, metadata={"parser": parser, "help": help})


@dataclass(frozen=True)
class Settings:
    """Every setting; field names are the keys with `_` for `-`."""

    model: str = key("demo", named, "a GGUF file, a safetensors folder, or org/name on the hub")
    hf_model: str | None = key(None, named, "the model as org/name[:TYPE][@REVISION] on the hub")
    gguf_path: Path | None = key(None, path, "the model as a GGUF file, used in place")
    safetensors_dir: Path | None = key(None, path, "the model as a safetensors folder")
    quantization: str | None = key(None, AutoOr(quantization), "type to download or to quantize to")
    revision: str | None = key(None, named, "branch, tag or commit of the repository (main)")
    filename: str | None = key(None, named, "the GGUF to take from the repository")
    pattern: str | None = key(None, named, "take the GGUF that matches (as *Q5*)")
    mmproj: str | None = key(None, AutoOr(named), "projector of a vision model; no: without")
    lora: str | None = key(None, named, "LoRA adapters (GGUF): files or references, with commas")
    draft_model: str | None = key(None, named, "small model that drafts: a file or a reference")
    sha256: str | None = key(None, sha256, "what the file of an https:// model must have")
    refresh: bool = key(False, yes_no, "ask the hub again what a resolved model is now")
    offline: bool = key(False, yes_no, "use no network for models")
    imatrix: Path | None = key(None, path, "importance matrix for the quantization")
    keep_f16: bool = key(True, yes_no, "keep the 16-bit file after quantizing")
    port: int | None = key(8080, AutoOr(number(1, 65535)), "port to listen on; auto: a free one")
    host: str = key("127.0.0.1", named, "address to listen on")
    threads: int | None = key(None, AutoOr(number(1, 4096)), "threads for generation")
    ctx_size: int | None = key(None, AutoOr(number(1, 1 << 27)), "context size in tokens")
    gpu_layers: int | None = key(None, AutoOr(number(0, 1 << 20)), "layers to put on the GPU")
    device: str = key("auto", one_of("auto", "cpu", "cuda", "metal", "vulkan"), "what to build for")
    platform: str | None = key(None, AutoOr(named), "whose binaries to make (windows-x64)")
    alias: str | None = key(None, named, "model name in the API")
    api_key: str | None = key(None, named, "key that clients must send")
    args: tuple[str, ...] = key((), words, "more arguments for llama-server (or for pytest)")
    bins_dir: Path | None = key(None, path, "folder for binaries and tools (bins)")
    models_dir: Path | None = key(None, path, "folder for models (models)")
    logs_dir: Path | None = key(None, path, "folder for logs (logs)")
    llama_cpp: Path | None = key(None, path, "your own llama.cpp source tree, used as it is")
    all: bool = key(False, yes_no, "every known model instead of one (list, forget)")
    long: bool = key(False, yes_no, "run the long tests too (test)")
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Where each value that is not a default came from, by key."""


def keys() -> dict[str, dataclasses.Field[Any]]:
    """Every setting's field by its key, in order."""
    fields = [item for item in dataclasses.fields(Settings) if "parser" in item.metadata]
    return {item.name.replace("_", "-"): item for item in fields}


def show(item: dataclasses.Field[Any], value: Any) -> str:
    """A setting's value as a user would write it; `-` for none."""
    if value is None:
        return "auto" if isinstance(item.metadata["parser"], AutoOr) else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (shlex.join(value) if isinstance(value, tuple) else str(value)) or "-"


def did_you_mean(word: str, known: Any) -> str:
    """The nearest of `known` as a hint, or nothing."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def load(words: Mapping[str, str], environ: Mapping[str, str], here: Path) -> Settings:
    """Settings from the command line's words over the environment over the defaults.

    `here` is where the user stands. Raises Refused for an unknown key, a bad value, or more than
    one model source.
    """
    known = keys()
    given: dict[str, str] = {}
    for word, value in words.items():
        name = word.replace("_", "-")
        if name not in known:
            raise Refused(f"unknown setting '{word}'{did_you_mean(name, known)}")
        given[name] = value
    origin = dict.fromkeys(given, COMMAND_LINE)
    chosen = any(name in given for name in SOURCE_KEYS)
    for name in known:
        variable = ENVIRONMENT_PREFIX + name.upper().replace("-", "_")
        overridden = name in given or (chosen and name in SOURCE_KEYS)
        if environ.get(variable) and not overridden:
            given[name], origin[name] = environ[variable], variable
    sources = [name for name in SOURCE_KEYS if name in given]
    if len(sources) > 1:
        raise Refused(
            f"more than one model: {' and '.join(sources)}", fix="name exactly one of them"
        )
    values = {
        known[name].name: _parse(name, value, origin[name], known[name].metadata["parser"], here)
        for name, value in given.items()
    }
    return Settings(**values, origin=origin)


def _parse(name: str, value: str, origin: str, parser: Parser, here: Path) -> Any:
    try:
        return parser(value, here)
    except (ValueError, RuntimeError) as error:
        place = "" if origin == COMMAND_LINE else f" (from {origin})"
        raise Refused(f"bad value '{value}' for setting '{name}'{place}: {error}") from None
