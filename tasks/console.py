"""The one place that prints: whole lines, whichever threads they come from."""

from __future__ import annotations

import os
import sys
import threading
import time

PROGRESS_EVERY_S = 10.0

_lock = threading.RLock()
_last_progress: dict[str, float] = {}


def say(who: str, text: str) -> None:
    """Print a step's line, as `build       compiling 12/340`."""
    line(f"{who:<10}  {text}")


def line(text: str) -> None:
    """Print whole lines; a reader that went away is no error."""
    with _lock:
        try:
            print(text, flush=True)
        except UnicodeEncodeError:
            encoding = sys.stdout.encoding
            print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        except OSError:  # A reader that went away, a full disk: what runs must not end by that.
            # Under the stream: what it still holds is flushed once more as Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(who: str, text: str) -> None:
    """Print how far a step is, at most every few seconds."""
    now = time.monotonic()
    with _lock:
        if now - _last_progress.get(who, 0.0) < PROGRESS_EVERY_S:
            return
        _last_progress[who] = now
    say(who, text)


def duration(seconds: float) -> str:
    """Seconds as people say them: '0.04 s', '1.4 s', '17 s', '8 min 31 s'."""
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"
