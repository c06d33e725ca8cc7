"""llama-server: its launch, and its life until it is asked to end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tasks import console, files, process
from tasks.arguments import EMBEDDING, Launch, Served, launch_of
from tasks.device import DeviceChoice
from tasks.errors import ServerError
from tasks.gguf_header import GgufHeader, read_header
from tasks.layout import Layout
from tasks.port import check_port
from tasks.settings import Settings

_POLL_S = 0.01
_TAIL_LINES = 12


def serve(
    settings: Settings, layout: Layout, *, program: Path, model: Served, on: DeviceChoice
) -> None:
    """Run llama-server until a signal ends it; raises ServerError where it ends otherwise."""
    header = read_header(model.path)
    launch = launch_of(settings, header, program=program, model=model, device=on.device)
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
        console.line(summary(launch, header, on.reason, log, took))
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


def summary(launch: Launch, header: GgufHeader, device: str, log: Path, seconds: float) -> str:
    """What a user wants to know of the server that just got ready."""
    key = ' -H "Authorization: Bearer $KEY"' if launch.api_key else ""
    embeds = any(word in EMBEDDING for word in launch.extra)
    route = "embeddings" if embeds else "chat/completions"
    body = (
        '{"input": "a short text"}'
        if embeds
        else '{"messages": [{"role": "user", "content": "Tell me a story."}]}'
    )
    rows: list[tuple[str, str]] = [
        ("model", f"{launch.alias} ({header.architecture})"),
        ("file", str(launch.model.path)),
        ("quantization", header.quantization or "unknown"),
        *launch.model.companions,
        ("size", files.human_size(launch.model.size)),
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
