"""How far a download is, in one line."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from tasks import console, files
from tasks.transfer.arrival import Arrival

SPEED_OVER_S = 15.0
SILENT_S = 2.0
"""Before the first line: what is quick needs none."""


class Meter:
    """How far it is, how fast lately, and how long it will take."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._begun = time.monotonic()

    def text(self, now: float, received: int, arrivals: Sequence[Arrival]) -> str:
        """`42 %, 1.9 GB of 4.7 GB, 85.3 MB/s, 33 s left`; '' while there is nothing to say."""
        self._samples.append((now, received))
        while now - self._samples[0][0] > SPEED_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if now - self._begun < SILENT_S or received == before:
            return ""
        coming = [one for one in arrivals if not one.landed or one.arrived]
        done = sum(one.arrived for one in coming)
        total = sum(one.size or 0 for one in coming)
        speed = (received - before) / (now - since)
        rate = f"{files.human_size(speed)}/s"
        if any(one.size is None for one in coming):
            return f"{files.human_size(done)}, {rate}"
        left = console.duration(max(0, total - done) / speed)
        of = f"{files.human_size(done)} of {files.human_size(total)}"
        return f"{done * 100 // max(total, 1)} %, {of}, {rate}, {left} left"
