"""The one place that runs commands, and that ends them with us whatever ends us."""

from __future__ import annotations

import atexit
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from tasks.guard import MARK_VARIABLE

GRACE_S = 4.0
"""Seconds between asking a child to end and making it end."""
INTERRUPTED = 130
_TAIL_LINES = 40
_KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

# Within another llamake's tests its mark stays, too: its guard must find our children.
_mark = os.environ.get(MARK_VARIABLE, "") + uuid.uuid4().hex
_children: set[subprocess.Popen[bytes]] = set()
_asked: set[subprocess.Popen[bytes]] = set()
_guard: subprocess.Popen[bytes] | None = None
_guard_lock = threading.RLock()
_stopping = threading.Event()
_healthy = threading.Event()


class CommandFailed(Exception):
    """A command ended with another status than 0; `tail` holds its last lines."""

    def __init__(self, argv: Sequence[str], status: int, tail: Sequence[str]) -> None:
        self.argv, self.status, self.tail = argv, status, tail
        super().__init__(f"{Path(argv[0]).name} {describe_status(status)}")


class Stopped(Exception):
    """We are being stopped, so nothing more is started."""


def describe_status(status: int) -> str:
    """An exit status in words: 'ended with exit code 2', 'was killed by SIGSEGV'."""
    if status < 0:
        try:
            return f"was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"was killed by signal {-status}"
    return f"ended with exit code {status}"


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    **popen: Any,
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, bound to our life; `env` adds to ours."""
    if _stopping.is_set():
        raise Stopped
    _start_guard()
    child = subprocess.Popen(
        list(argv),
        cwd=cwd,
        env={**os.environ, **(env or {}), MARK_VARIABLE: _mark},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **popen,
    )
    _children.add(child)
    if _stopping.is_set():  # The signal came before it knew of this child.
        terminate(child)
        raise Stopped
    return child


def finish(child: subprocess.Popen[bytes]) -> int:
    """Wait for a started command; its exit status."""
    status = child.wait()
    _children.discard(child)
    return status


def run(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> None:
    """Run a command to its end, all its output to `log`, each line to `on_line`.

    Progress meters that rewrite their line (carriage return) count as lines.
    Raises CommandFailed with the last lines.
    """
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as sink:
        sink.write(f"+ {shlex.join(argv)}\n".encode())
        sink.flush()
        child = start(argv, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert child.stdout is not None
        try:
            with child.stdout:
                for line in _lines(child.stdout, sink):
                    tail.append(line)
                    if on_line:
                        on_line(line)
        except BaseException:  # Such as a full disk: nobody would read the rest.
            terminate(child)
            raise
        status = finish(child)
    if _stopping.is_set():
        raise Stopped
    if status:
        raise CommandFailed(argv, status, list(tail))


def _lines(stream: IO[bytes], sink: IO[bytes]) -> Iterator[str]:
    rest = b""
    while chunk := os.read(stream.fileno(), 65536):
        sink.write(chunk)
        sink.flush()
        *complete, rest = (rest + chunk).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        yield from (line.decode(errors="replace") for line in complete if line.strip())
    if rest.strip():
        yield rest.decode(errors="replace")


def capture(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> str | None:
    """What a short command prints on stdout and stderr, or None where it cannot run or fails."""
    try:
        done = subprocess.run(
            list(argv),
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def can_run(argv: Sequence[str]) -> bool:
    """True where a short command starts and ends by itself, whatever its exit code."""
    try:
        done = subprocess.run(list(argv), stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode >= 0


def terminate(child: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """End a child and its whole session: ask once, wait, insist."""
    _ask_to_end(child)
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    # Also where it ended by itself: what it had started may not have.
    _signal_session(child, _KILL)
    finish(child)


def _ask_to_end(child: subprocess.Popen[bytes]) -> None:
    # llama-server takes a second request for impatience and ends without cleaning up.
    if child not in _asked:
        _asked.add(child)
        _signal_session(child, signal.SIGTERM)


def _signal_session(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if os.name == "nt":
            child.terminate()
        else:
            os.killpg(child.pid, number)


def stopping() -> bool:
    """True once a signal asked us to end."""
    return _stopping.is_set()


def now_healthy() -> None:
    """From now on being asked to stop is a clean end: the server serves."""
    _healthy.set()


def healthy() -> bool:
    """True once the server has served."""
    return _healthy.is_set()


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    again = _stopping.is_set()
    _stopping.set()
    for child in list(_children):
        if again:
            _signal_session(child, _KILL)
        else:
            _ask_to_end(child)
    if again:
        return
    if not _healthy.is_set():
        raise SystemExit(INTERRUPTED)
    # Waiting here could wait for ourselves: the signal may have come within `finish`.
    threading.Thread(target=_end_children, daemon=True).start()


def _end_children() -> None:
    for child in list(_children):
        terminate(child)


def install_signal_handlers() -> None:
    """Map Ctrl-C, SIGTERM and a closed terminal to an orderly end; call from the main thread."""
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):
            number = getattr(signal, name, None)
            # `nohup` ignores SIGHUP, and it must stay so.
            if number and not (name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN):
                signal.signal(number, _on_signal)


def _start_guard() -> None:
    global _guard
    with _guard_lock:
        if _guard is None:
            _guard = subprocess.Popen(
                [sys.executable, "-I", str(Path(__file__).with_name("guard.py")), _mark],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            atexit.register(_dismiss_guard)


def _dismiss_guard() -> None:
    _end_children()
    if _guard:
        # Stopped in the middle, we may not know of every child: the guard then looks for them.
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            _guard.communicate(b"" if _stopping.is_set() else b"bye", timeout=GRACE_S)
