"""llama-server: its command line, its launch, and its life until it is asked to end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tasks import console, files, machine, process
from tasks.device import DeviceChoice
from tasks.errors import Refused, ServerError
from tasks.gguf_header import GgufHeader, read_header
from tasks.layout import Layout
from tasks.port import check_port, free_port, reachable
from tasks.settings import Settings

DEFAULT_CONTEXT = 4096
"""Tokens; enough to chat, and small enough to start at once on a laptop."""
_POLL_S = 0.01
_TAIL_LINES = 12
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
    }.items()
    for name in names
}
"""Arguments of llama-server by which the summary would be wrong, and the setting to use."""
_PREFIX = "--api-prefix"
_EMBEDDING = ("--embedding", "--embeddings", "--rerank", "--reranking")


@dataclass(frozen=True)
class Launch:
    """Everything that decides a server's command line."""

    program: Path
    model: Path
    alias: str
    host: str
    port: int
    threads: int
    context: int
    gpu_layers: int | None
    cache_mib: int
    api_key: str | None
    extra: tuple[str, ...]

    @property
    def argv(self) -> list[str]:
        """The command line; what the user adds comes last and so wins."""
        argv = [str(self.program), "--model", str(self.model), "--alias", self.alias]
        argv += ["--host", self.host, "--port", str(self.port)]
        argv += ["--threads", str(self.threads), "--ctx-size", str(self.context)]
        argv += ["--cache-ram", str(self.cache_mib)]
        if self.gpu_layers is not None:
            argv += ["--n-gpu-layers", str(self.gpu_layers)]
        if any(word in _EMBEDDING for word in self.extra):
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
    settings: Settings, header: GgufHeader, *, program: Path, model: Path, name: str, device: str
) -> Launch:
    """The launch that the settings ask for, with what this machine decides filled in."""
    check_arguments(settings)
    trained = header.context_length or DEFAULT_CONTEXT
    return Launch(
        program=program,
        model=model,
        alias=settings.alias or name,
        host=settings.host,
        port=settings.port or free_port(settings.host),
        threads=settings.threads or machine.server_threads(),
        context=settings.ctx_size or min(DEFAULT_CONTEXT, trained),
        # On a GPU build llama-server itself puts on the device all that fits.
        gpu_layers=0 if settings.gpu_layers is None and device == "cpu" else settings.gpu_layers,
        cache_mib=cache_mib(machine.available_memory()),
        api_key=settings.api_key,
        extra=settings.args,
    )


def cache_mib(available: int) -> int:
    """MiB for llama-server's prompt cache: a quarter of the memory, at most its own 8 GiB."""
    return max(0, min(8192, available // 4 >> 20))


def serve(
    settings: Settings, layout: Layout, *, program: Path, model: Path, name: str, on: DeviceChoice
) -> None:
    """Run llama-server until a signal ends it; raises ServerError where it ends otherwise."""
    header = read_header(model)
    launch = launch_of(settings, header, program=program, model=model, name=name, device=on.device)
    check_port(launch.host, launch.port)
    log = _new_log(layout)
    started = time.monotonic()
    environment = {"LLAMA_API_KEY": launch.api_key} if launch.api_key else {}
    try:
        child = process.start(
            launch.argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        raise ServerError(f"{program} does not start", str(error), "doit forget build") from None
    tee = _Tee(child, log)
    if _wait_until_healthy(launch, child):
        process.now_healthy()
        took = time.monotonic() - started
        console.line(summary(launch, header, on.reason, log, took, model.stat().st_size))
    status = process.finish(child)
    tee.join(process.GRACE_S)  # Longer only where a child of the server lives on.
    _judge(status, process.healthy(), tee.tail, log)


def _judge(status: int, was_healthy: bool, tail: Sequence[str], log: Path) -> None:
    if process.stopping():
        if not was_healthy:
            raise process.Stopped
        console.say("serve", "stopped")
        return
    if was_healthy and status == 0:
        console.say("serve", "the server was stopped")
        return
    what = "the server died" if was_healthy else "the server did not start"
    last = [f"  | {line}" for line in tail]
    why, fix = hint(tail)
    raise ServerError(
        "\n".join([f"{what}: llama-server {process.describe_status(status)}", *last]),
        why,
        f"{fix}; the whole log is {log}" if fix else f"see {log}",
    )


_HINTS = (
    ("unable to allocate", "too little memory", "take a smaller quantization= or ctx-size="),
    ("out of memory", "too little memory", "take a smaller quantization= or ctx-size="),
    ("failed to allocate", "too little memory", "take a smaller quantization= or ctx-size="),
    ("invalid argument", "llama-server does not know an argument", "check args="),
    ("unknown model architecture", "this llama.cpp is too old for the model", "update llamake"),
    ("couldn't bind", "the port was taken meanwhile", "take another port= or port=auto"),
    ("failed to load model", "llama-server cannot load this file", "check the model file"),
)


def hint(tail: Sequence[str]) -> tuple[str, str]:
    """Why a server ended and what to do, as far as its last lines tell."""
    text = "\n".join(tail).lower()
    return next(((why, fix) for sign, why, fix in _HINTS if sign in text), ("", ""))


def _new_log(layout: Layout) -> Path:
    """A log file that no other server writes to."""
    layout.logs.mkdir(parents=True, exist_ok=True)
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = layout.server_log(stamp + suffix)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return path
    raise ServerError(f"no log file could be made in {layout.logs}")


class _Tee(threading.Thread):
    """Copies the server's output to its log and to our stdout, and keeps the last lines."""

    def __init__(self, child: subprocess.Popen[bytes], log: Path) -> None:
        super().__init__(daemon=True)
        self.child, self.log = child, log
        self._last: deque[str] = deque(maxlen=_TAIL_LINES)
        self.start()

    @property
    def tail(self) -> list[str]:
        return list(self._last)

    def run(self) -> None:
        assert self.child.stdout
        with open(self.log, "ab", buffering=0) as sink:
            for line in self.child.stdout:
                # On a full disk the server must not stand still behind a full pipe.
                with contextlib.suppress(OSError):
                    sink.write(line)
                text = line.decode(errors="replace").rstrip()
                if text:
                    self._last.append(text)
                console.line(text)


def _wait_until_healthy(launch: Launch, child: subprocess.Popen[bytes]) -> bool:
    """True once the model is loaded, False where the server ends before."""
    while child.poll() is None and not process.stopping():
        if answers(launch.url):
            return True
        time.sleep(_POLL_S)
    return False


def answers(url: str) -> bool:
    """True where a server at `url` has loaded its model (503 means that it still loads)."""
    import http.client
    import ssl
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=2)
    if parts.scheme == "https":
        # Whether it is up, not who it is: a certificate of its own is as good.
        unverified = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(parts.netloc, timeout=2, context=unverified)
    try:
        connection.request("GET", f"{parts.path}/health")
        return connection.getresponse().status != 503
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def summary(
    launch: Launch, header: GgufHeader, device: str, log: Path, seconds: float, size: int
) -> str:
    """What a user wants to know of the server that just got ready."""
    key = ' -H "Authorization: Bearer $KEY"' if launch.api_key else ""
    embeds = any(word in _EMBEDDING for word in launch.extra)
    route = "embeddings" if embeds else "chat/completions"
    body = (
        '{"input": "a short text"}'
        if embeds
        else '{"messages": [{"role": "user", "content": "Tell me a story."}]}'
    )
    rows: list[tuple[str, str]] = [
        ("model", f"{launch.alias} ({header.architecture})"),
        ("file", str(launch.model)),
        ("quantization", header.quantization or "unknown"),
        ("size", files.human_size(size)),
        ("device", device),
        ("threads", str(launch.threads)),
        ("context", f"{launch.context} tokens"),
        ("API", f"{launch.url}/v1"),
        ("web UI", f"{launch.url}/"),
        ("log", str(log)),
        ("try", f"curl {launch.url}/v1/{route}{key} -d '{body}'"),
    ]
    lines = [f"  {label:<13} {value}" for label, value in rows]
    return "\n".join(["", f"ready in {console.duration(seconds)}: {launch.url}", *lines, ""])
