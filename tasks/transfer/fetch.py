"""Download files: in parallel ranges, resumed after anything, verified before they are named."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import console, files, process
from tasks.files import FileSum
from tasks.transfer import adoption, incomplete, ranges, xet
from tasks.transfer.arrival import Arrival
from tasks.transfer.incomplete import Wanted
from tasks.transfer.meter import Meter
from tasks.transfer.workers import Workers

if TYPE_CHECKING:
    import httpx2

__all__ = ["Wanted", "fetch", "reuse"]

_TICK_S = 0.1
_OPEN_FILES = 16
"""In work at the same time, those that only wait or are verified included."""
_CHUNK = 1 << 20


def fetch(
    wanted: Sequence[Wanted],
    *,
    headers: Mapping[str, str],
    client: httpx2.Client,
    who: str = "download",
) -> dict[Path, FileSum]:
    """Have all these files, verified, under their names; their checksums by target.

    `headers` are read anew for every request; a token among them is sent to the origin of
    `Wanted.url` and nowhere else. Raises ModelError, StorageError, huggingface_hub's errors
    for what the hub refuses, and process.Stopped.
    """
    jobs = list({one.target: one for one in wanted}.values())
    for one in jobs:
        with files.storage(one.target.parent):
            one.target.parent.mkdir(parents=True, exist_ok=True)
    incomplete.check_room(jobs)
    return _Download(jobs, headers, client, who).run()


def reuse(candidates: Sequence[Path], wanted: Wanted, who: str = "download") -> FileSum | None:
    """Have a file without a download: its target if that is right, or a copy found elsewhere.

    A candidate's name says nothing, its content all. None: it must be fetched.
    """

    def check() -> None:
        if process.stopping():
            raise process.Stopped

    def wait() -> None:
        check()
        time.sleep(_TICK_S)

    with files.storage(wanted.target.parent):
        wanted.target.parent.mkdir(parents=True, exist_ok=True)
        with adoption.alone(wanted, who, wait):
            found = adoption.standing(wanted, who, check)
            found = found or adoption.adopt(candidates, wanted, who, check)
            if found:
                incomplete.Incomplete(wanted).discard()
            return found


class _Download:
    """A thread for each file that locks, follows, verifies and names it, beside the workers."""

    def __init__(
        self, wanted: Sequence[Wanted], headers: Mapping[str, str], client: httpx2.Client, who: str
    ) -> None:
        self._workers = Workers(wanted, headers, client, who)
        self._headers, self._who = headers, who

    def run(self) -> dict[Path, FileSum]:
        """Work until all have landed or something ends it."""
        workers, arrivals, meter = self._workers, self._workers.arrivals, Meter()
        waiting = deque(arrivals)
        followers: list[threading.Thread] = []
        try:
            workers.begin()
            while not workers.over and not all(file.landed for file in arrivals):
                if process.stopping():
                    raise process.Stopped
                followers = [thread for thread in followers if thread.is_alive()]
                while waiting and len(followers) < _OPEN_FILES:
                    followers.append(workers.start(self._follow, waiting.popleft()))
                with workers.lock:
                    workers.ended.wait(_TICK_S)
                    now = time.monotonic()
                    self._watch_xet()
                    workers.observe(now)
                    progress = meter.text(now, workers.received, arrivals)
                if progress:
                    console.progress(self._who, progress)
        finally:
            if any(file.xet and not file.landed for file in arrivals):
                xet.abort()
            workers.end()
        if workers.error:
            raise workers.error
        return {file.wanted.target: file.landed for file in arrivals if file.landed}

    def _watch_xet(self) -> None:
        for file in self._workers.arrivals:
            if file.xet and not file.landed:
                held = file.disk.held()
                self._workers.received += max(0, held - file.prefix)
                file.prefix = held

    def _follow(self, file: Arrival) -> None:
        wanted, check = file.wanted, self._workers.check
        with files.storage(wanted.target.parent), adoption.alone(wanted, self._who, self._pause):
            landed = None if wanted.anew else adoption.standing(wanted, self._who, check)
            if landed:
                file.disk.discard()
            else:
                self._prepare(file)
                landed = self._verified(file)
        with self._workers.lock:
            file.landed = landed
            self._workers.ended.notify_all()

    def _pause(self) -> None:
        self._workers.check()
        time.sleep(_TICK_S)

    def _prepare(self, file: Arrival) -> None:
        found = file.disk.left_over()
        with self._workers.lock:
            self._workers.check()
            if found:
                file.size, file.validator, safe = found
                file.begin(safe)
            elif file.size is not None and file.wanted.expected:
                file.begin(ranges.Spans())
            file.xet = xet.demanded(file.wanted)
            file.ready = not file.xet
            self._workers.free.notify_all()

    def _verified(self, file: Arrival) -> FileSum:
        digest = self._hash(file)
        if file.xet:
            xet.download(file.wanted, file.disk, self._headers)
        if file.xet or digest.size != file.size:  # Git's checksum begins with the size.
            digest, _ = incomplete.read(file.disk.path, file.wanted, self._workers.check)
        self._workers.check()
        if not digest.matches:
            raise file.disk.refuse(digest)
        if file.wanted.anew:  # What the user changed in the one that is replaced is kept.
            adoption.standing(file.wanted, self._who, self._workers.check)
        return file.disk.land(digest)

    def _hash(self, file: Arrival) -> incomplete.Digest:
        """Follow the file as it grows; its checksums once it is complete."""
        buffer = memoryview(bytearray(_CHUNK))
        digest: incomplete.Digest | None = None
        position = restarts = 0
        while True:
            with self._workers.lock:
                while not (
                    self._workers.over or file.xet or file.complete or file.contiguous > position
                ):
                    file.grown.wait(_TICK_S)
                self._workers.check()
                if digest is None or restarts != file.restarts:
                    digest = incomplete.Digest(file.wanted, file.size or 0)
                    position, restarts = 0, file.restarts
                end = file.contiguous
                if file.xet or (file.complete and position == end):
                    return digest
            with open(file.disk.path, "rb", buffering=0) as source:
                source.seek(position)
                while position < end and (got := source.readinto(buffer[: end - position])):
                    self._workers.check()
                    digest.update(buffer[:got])
                    position += got
