"""llama-server's command line: from the settings, the model and what this machine allows."""

from __future__ import annotations

import glob
import re
from dataclasses import dataclass
from pathlib import Path

from tasks import machine
from tasks.errors import Refused
from tasks.gguf_header import GgufHeader, read_header
from tasks.port import free_port, reachable
from tasks.settings import Settings

DEFAULT_CONTEXT = 4096
"""Tokens; enough to chat, and small enough to start at once on a laptop."""
_SPLIT = re.compile(r"(.*)-00001-of-(\d{5}\.gguf)")
_OURS = {
    name: setting
    for setting, names in {
        "model=": ("-m", "--model"),
        "alias=": ("-a", "--alias"),
        "port=": ("--port",),
        "host=": ("--host",),
        "threads=": ("-t", "--threads"),
        "ctx-size=": ("-c", "--ctx-size"),
        "gpu-layers=": ("-ngl", "--gpu-layers", "--n-gpu-layers"),
        "api-key=": ("--api-key",),
        "mmproj=": ("-mm", "--mmproj"),
        "lora=": ("--lora",),
        "draft-model=": ("-md", "--model-draft", "--spec-draft-model"),
    }.items()
    for name in names
}
"""Arguments of llama-server by which the summary would be wrong, and the setting to use."""
_PREFIX = "--api-prefix"
_SPECULATION = "--spec-type"
EMBEDDING = ("--embedding", "--embeddings", "--rerank", "--reranking")


@dataclass(frozen=True)
class Served:
    """The files that a server loads."""

    path: Path
    """The model, or the first part of a split one."""
    name: str
    """What to call it in the API."""
    mmproj: Path | None = None
    draft: Path | None = None
    adapters: tuple[Path, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the model, all parts of a split one together."""
        parts = [self.path]
        if split := _SPLIT.fullmatch(self.path.name):
            parts = list(self.path.parent.glob(f"{glob.escape(split[1])}-?????-of-{split[2]}"))
        return sum(part.stat().st_size for part in parts)

    @property
    def argv(self) -> list[str]:
        """The arguments that name them."""
        argv = ["--model", str(self.path)]
        if self.mmproj:
            argv += ["--mmproj", str(self.mmproj)]
        if self.draft:
            argv += ["--model-draft", str(self.draft)]
        for adapter in self.adapters:
            argv += ["--lora", str(adapter)]
        return argv

    @property
    def companions(self) -> list[tuple[str, str]]:
        """What is loaded besides the model, for the summary."""
        rows = [("mmproj", self.mmproj), ("draft model", self.draft)]
        rows += [("LoRA", adapter) for adapter in self.adapters]
        return [(label, str(path)) for label, path in rows if path]


@dataclass(frozen=True)
class Launch:
    """Everything that decides a server's command line."""

    program: Path
    model: Served
    alias: str
    host: str
    port: int
    threads: int
    context: int
    gpu_layers: int | None
    cache_mib: int
    api_key: str | None
    extra: tuple[str, ...]
    speculation: str = ""
    """The way in which the draft model drafts, '' where llama-server finds out."""

    @property
    def argv(self) -> list[str]:
        """The command line; what the user adds comes last and so wins."""
        argv = [str(self.program), *self.model.argv, "--alias", self.alias]
        argv += ["--host", self.host, "--port", str(self.port)]
        argv += ["--threads", str(self.threads), "--ctx-size", str(self.context)]
        argv += ["--cache-ram", str(self.cache_mib)]
        if self.speculation:
            argv += [_SPECULATION, self.speculation]
        if self.gpu_layers is not None:
            argv += ["--n-gpu-layers", str(self.gpu_layers)]
        if any(word in EMBEDDING for word in self.extra):
            # A text is embedded in one piece: the physical batch must hold the whole context.
            argv += ["--batch-size", str(self.context), "--ubatch-size", str(self.context)]
        return [*argv, *self.extra]

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        scheme = "https" if any(word.startswith("--ssl-cert") for word in self.extra) else "http"
        words = dict(zip(self.extra, self.extra[1:], strict=False))
        prefix = "/" + words[_PREFIX].strip("/") if _PREFIX in words else ""
        return f"{scheme}://{reachable(self.host)}:{self.port}{prefix}"


def check_arguments(settings: Settings) -> None:
    """Refuse arguments for llama-server that a setting is there for."""
    for word in settings.args:
        name = word.split("=")[0]
        if name in _OURS:
            raise Refused(f"args= must not contain {name}", fix=f"use {_OURS[name]}")


def launch_of(
    settings: Settings, header: GgufHeader, *, program: Path, model: Served, device: str
) -> Launch:
    """The launch that the settings ask for, with what this machine decides filled in."""
    check_arguments(settings)
    trained = header.context_length or DEFAULT_CONTEXT
    return Launch(
        program=program,
        model=model,
        alias=settings.alias or model.name,
        host=settings.host,
        port=settings.port or free_port(settings.host),
        threads=settings.threads or machine.server_threads(),
        context=settings.ctx_size or min(DEFAULT_CONTEXT, trained),
        # On a GPU build llama-server itself puts on the device all that fits.
        gpu_layers=0 if settings.gpu_layers is None and device == "cpu" else settings.gpu_layers,
        cache_mib=cache_mib(machine.available_memory()),
        api_key=settings.api_key,
        extra=settings.args,
        speculation=speculation(read_header(model.draft))
        if model.draft and _SPECULATION not in settings.args
        else "",
    )


def speculation(draft: GgufHeader) -> str:
    """The type of speculative decoding that a draft model is for, '' where llama-server sees it.

    Untold, it loads a model that was not made for drafting, and never asks it.
    """
    if draft.architecture == "dflash" or draft.of_architecture("nextn_predict_layers"):
        return ""
    return "draft-eagle3" if draft.architecture == "eagle3" else "draft-simple"


def cache_mib(available: int) -> int:
    """MiB for llama-server's prompt cache: a quarter of the memory, at most its own 8 GiB."""
    return max(0, min(8192, available // 4 >> 20))
