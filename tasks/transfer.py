"""Download files: in parallel ranges, resumed after anything, verified before they are named."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import console, files, incomplete, process, ranges, request, xet
from tasks.errors import ModelError
from tasks.files import FileSum
from tasks.incomplete import Incomplete, Wanted

if TYPE_CHECKING:
    import httpx2

__all__ = ["Wanted", "fetch", "reuse"]

_TICK_S = 0.1
_STEP, _STEP_S = 512 << 10, 0.25
"""Bytes or seconds after which what has arrived is journaled."""
_OPEN_FILES = 16
"""In work at the same time, those that only wait or are verified included."""
_CHUNK = 1 << 20
_SPEED_OVER_S, _SILENT_S = 15.0, 2.0
"""Seconds that a speed is taken from; and before the first line of progress."""
_END_S = 0.5
"""How long to wait for threads at the end; who is stuck in the network is left behind."""


class _Over(Exception):
    """The whole download ends; whoever notices just stops."""


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
        with incomplete.alone(wanted, who, wait):
            return incomplete.standing(wanted, who, check) or incomplete.reuse(
                candidates, wanted, who, check
            )


class _File:
    """A file on its way; everything but `wanted` and `disk` belongs to the download's lock."""

    def __init__(self, wanted: Wanted, lock: threading.Lock) -> None:
        self.wanted = wanted
        self.disk = Incomplete(wanted)
        self.grown = threading.Condition(lock)
        self.patience = ranges.Patience()
        self.size = wanted.size
        self.plan: ranges.Plan | None = None
        """None before anything is known, and where the server gives no ranges."""
        self.ready = False
        """Workers may take it in hand."""
        self.whole = False
        """It comes as one stream: `prefix` bytes of it so far, and `streamed` at its end."""
        self.prefix, self.streamed = 0, False
        self.restarts = 0
        """How often all that was there lost its worth."""
        self.xet = False
        self.validator = ""
        """What names the version of a file without a checksum."""
        self.location = ""
        """Where redirects ended; '' while one worker (`asking`) finds out."""
        self.asking = False
        self.refused = False
        """The last location was refused, and no byte has come since."""
        self.busy = 0
        """Workers that have it in hand."""
        self.landed: FileSum | None = None

    @property
    def arrived(self) -> int:
        """Bytes on disk."""
        return self.plan.safe.total if self.plan else self.prefix

    @property
    def contiguous(self) -> int:
        """Bytes on disk before the first gap."""
        return self.plan.safe.prefix if self.plan else self.prefix

    @property
    def complete(self) -> bool:
        """True once nothing more must come, and nobody writes."""
        return not self.busy and (self.plan.complete if self.plan else self.streamed)

    def restart(self) -> None:
        """Begin anew, as one stream."""
        self.plan, self.whole, self.prefix = None, True, 0
        self.restarts += 1

    def offer(self, now: float, level: int) -> ranges.Piece | None:
        """A range that one more worker should ask for; it must be given back with `busy`."""
        if not self.ready or now < self.patience.until or self.asking:
            return None
        if self.plan:
            return self.plan.take(level)
        if self.busy or self.streamed:
            return None
        return ranges.Piece(0, ranges.MIB)


class _Download:
    """The workers, one thread for each file that follows and verifies it, and their end."""

    def __init__(
        self, wanted: Sequence[Wanted], headers: Mapping[str, str], client: httpx2.Client, who: str
    ) -> None:
        self._headers, self._client, self._who = headers, client, who
        self._lock = threading.Lock()
        self._ended = threading.Condition(self._lock)
        """A file has landed, or all is over."""
        self._free = threading.Condition(self._lock)
        """There may be something to ask for."""
        self._files = [_File(one, self._lock) for one in wanted]
        self._pace = ranges.Pace()
        self._error: BaseException | None = None
        self._over = False
        self._quiet_until = 0.0
        """A server asked to be left alone until then."""
        self._streams: set[socket.socket] = set()
        self._received = 0
        self._latency = 0.0
        self._threads: list[threading.Thread] = []

    # The calling thread

    def run(self) -> dict[Path, FileSum]:
        """Work until all have landed or something ends it."""
        meter = _Meter()
        waiting = deque(self._files)
        followers: list[threading.Thread] = []
        try:
            for number in range(ranges.CONNECTIONS):
                self._start(self._work, number)
            while not self._over and not all(file.landed for file in self._files):
                if process.stopping():
                    raise process.Stopped
                followers = [thread for thread in followers if thread.is_alive()]
                while waiting and len(followers) < _OPEN_FILES:
                    followers.append(self._start(self._follow, waiting.popleft()))
                with self._lock:
                    self._ended.wait(_TICK_S)
                    now = time.monotonic()
                    self._watch_xet()
                    self._pace.observe(now, self._received, len(self._streams), self._latency)
                    progress = meter.text(now, self._received, self._files)
                if progress:
                    console.progress(self._who, progress)
        finally:
            self._end()
        if self._error:
            raise self._error
        return {file.wanted.target: file.landed for file in self._files if file.landed}

    def _start(self, work: Callable[..., None], *about: Any) -> threading.Thread:
        # A daemon: one that is stuck in the network must not keep a process from its end.
        thread = threading.Thread(target=self._guarded, args=(work, *about), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _guarded(self, work: Callable[..., None], *about: Any) -> None:
        try:
            work(*about)
        except _Over:
            pass
        except BaseException as error:
            with self._lock:
                if not self._over:
                    self._error, self._over = error, True
                self._wake()

    def _watch_xet(self) -> None:
        for file in self._files:
            if file.xet and not file.landed:
                held = file.disk.held()
                self._received += max(0, held - file.prefix)
                file.prefix = held

    def _end(self) -> None:
        with self._lock:
            self._over = True
            self._wake()
            for stream in self._streams:
                # Wakes who reads from it. Not TLS's own shutdown, which belongs to the reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(stream, socket.SHUT_RDWR)
        if any(file.xet and not file.landed for file in self._files):
            xet.abort()
        deadline = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for file in self._files:
                file.disk.close()

    def _wake(self) -> None:
        self._ended.notify_all()
        self._free.notify_all()
        for file in self._files:
            file.grown.notify_all()

    def _check(self) -> None:
        if self._over:
            raise _Over

    # A thread for each file: lock, look what is there, hash what arrives, verify, name

    def _follow(self, file: _File) -> None:
        wanted = file.wanted
        with files.storage(wanted.target.parent), incomplete.alone(wanted, self._who, self._pause):
            landed = incomplete.standing(wanted, self._who, self._check)
            if landed is None:
                self._prepare(file)
                landed = self._verified(file)
        with self._lock:
            file.landed = landed
            self._ended.notify_all()

    def _pause(self) -> None:
        self._check()
        time.sleep(_TICK_S)

    def _prepare(self, file: _File) -> None:
        found = file.disk.left_over()
        with self._lock:
            self._check()
            if found:
                file.size, file.validator, safe = found
                self._plan(file, safe)
            elif file.size is not None and file.wanted.expected:
                self._plan(file, ranges.Spans())
            file.xet = xet.demanded(file.wanted)
            file.ready = not file.xet
            self._free.notify_all()

    def _plan(self, file: _File, safe: ranges.Spans) -> ranges.Plan:
        assert file.size is not None
        file.disk.begin(file.size, file.validator, safe)
        file.plan = ranges.Plan(file.size, safe)
        return file.plan

    def _verified(self, file: _File) -> FileSum:
        digest = self._hash(file)
        if file.xet:
            xet.download(file.wanted, file.disk, self._headers)
            self._check()
            digest, _ = incomplete.read(file.disk.path, file.wanted, self._check)
        self._check()
        if not digest.matches:
            raise file.disk.refuse(digest)
        return file.disk.land(digest)

    def _hash(self, file: _File) -> incomplete.Digest:
        """Follow the file as it grows; its checksums once it is complete."""
        buffer = memoryview(bytearray(_CHUNK))
        digest: incomplete.Digest | None = None
        position = restarts = 0
        while True:
            with self._lock:
                while not (self._over or file.xet or file.complete or file.contiguous > position):
                    file.grown.wait(_TICK_S)
                self._check()
                if digest is None or restarts != file.restarts:
                    digest = incomplete.Digest(file.wanted, file.size or 0)
                    position, restarts = 0, file.restarts
                end = file.contiguous
                if file.xet or (file.complete and position == end):
                    return digest
            with open(file.disk.path, "rb", buffering=0) as source:
                source.seek(position)
                while position < end and (got := source.readinto(buffer[: end - position])):
                    self._check()
                    digest.update(buffer[:got])
                    position += got

    # The workers

    def _work(self, number: int) -> None:
        while True:
            file, piece = self._next(number)
            try:
                with files.storage(file.wanted.target.parent):
                    self._serve(file, piece)
            finally:
                with self._lock:
                    file.busy -= 1
                    if file.plan:
                        file.plan.release(piece)
                    file.grown.notify_all()
                    self._free.notify_all()

    def _next(self, number: int) -> tuple[_File, ranges.Piece]:
        with self._lock:
            while True:
                self._check()
                now = time.monotonic()
                if number >= self._pace.level or now < self._quiet_until:
                    self._ended.wait(_TICK_S)
                    continue
                for file in self._files:
                    if piece := file.offer(now, self._pace.level):
                        file.busy += 1
                        file.asking = not file.location
                        return file, piece
                self._free.wait(_TICK_S)

    def _serve(self, file: _File, piece: ranges.Piece) -> None:
        with self._lock:
            outage, location, restarts = file.patience.outage, file.location, file.restarts
            span = None if file.whole else (piece.position, piece.end)
        wanted, began = file.wanted, time.monotonic()
        url = location or wanted.url
        try:
            with request.ask(
                self._client, wanted, url, self._headers, span, file.validator
            ) as answer:
                with self._lock:
                    self._latency = (self._latency + time.monotonic() - began) / 2
                    self._check()
                    receive = self._accept(file, piece, answer, restarts)
                with self._streaming(answer):
                    receive()
        except request.NoRanges:
            with self._lock:
                file.restart()
        except request.NeedsXet:
            with self._lock:
                file.restart()
                file.xet, file.ready = True, False
        except request.Expired as error:
            self._expired(file, location, error)
        except request.Unsteady as error:
            self._unsteady(file, outage, error)
        finally:
            if not location:
                with self._lock:
                    file.asking = False

    def _accept(
        self, file: _File, piece: ranges.Piece, answer: request.Answer, restarts: int
    ) -> Callable[[], None]:
        """What to do with this answer; the lock is held."""
        if answer.total is not None and file.size not in (None, answer.total):
            raise ModelError(
                f"{file.wanted.name} is not what was expected",
                f"{request.host(answer.url)} has {answer.total} bytes of it, not {file.size}",
                "add refresh=yes if it changed; else a proxy or mirror in between is broken",
            )
        file.location, file.asking = answer.url, False
        if file.restarts != restarts:
            return lambda: None
        if answer.partial and answer.total is not None and file.plan is None and not file.whole:
            file.size, file.validator = answer.total, answer.validator
            incomplete.check_room([dataclasses.replace(file.wanted, size=answer.total)])
            plan = self._plan(file, ranges.Spans())
            piece.end = min(piece.end, answer.total)
            plan.asked.append(piece)
        if answer.partial and file.plan and file.validator in ("", answer.validator):
            self._free.notify_all()
            return lambda: self._receive_part(file, piece, answer, restarts)
        # Ranges are refused, or the content is another than before.
        file.restart()
        if answer.partial or file.busy > 1:
            return lambda: None
        file.size = answer.total if file.size is None else file.size
        file.disk.begin_unjournaled()
        return lambda: self._receive_whole(file, answer)

    @contextlib.contextmanager
    def _streaming(self, answer: request.Answer) -> Iterator[None]:
        stream = answer.response.extensions["network_stream"].get_extra_info("socket")
        with self._lock:
            self._check()
            self._streams.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._streams.discard(stream)

    def _receive_part(
        self, file: _File, piece: ranges.Piece, answer: request.Answer, restarts: int
    ) -> None:
        position, noted = piece.position, time.monotonic()

        def journal() -> None:
            with self._lock:
                if file.restarts != restarts or file.plan is None or position == piece.position:
                    return
                file.disk.wrote(piece.position, position)
                self._received += position - piece.position
                file.plan.arrived(piece, position)
                file.patience.progressed()
                file.refused = False
                file.grown.notify_all()
                self._free.notify()

        with open(file.disk.path, "rb+", buffering=0) as sink:
            sink.seek(position)
            try:
                with request.transient(file.wanted, answer.url):
                    for chunk in answer.response.iter_raw():
                        self._check()
                        if file.restarts != restarts:
                            return
                        position += _write(sink, chunk[: piece.end - position])
                        now = time.monotonic()
                        if position - piece.position >= _STEP or now - noted >= _STEP_S:
                            journal()
                            noted = now
            finally:
                journal()  # Of a broken stream, too.
        if position < (answer.end or piece.end):
            raise request.Unsteady(f"{request.host(answer.url)} ended the answer too early")

    def _receive_whole(self, file: _File, answer: request.Answer) -> None:
        position, size = 0, file.size
        with (
            open(file.disk.path, "rb+", buffering=0) as sink,
            request.transient(file.wanted, answer.url),
        ):
            for chunk in answer.response.iter_bytes():
                self._check()
                if size is not None and position + len(chunk) > size:
                    raise ModelError(
                        f"{file.wanted.name} is not what was expected",
                        f"{request.host(answer.url)} sends more than its {size} bytes",
                        "add refresh=yes if it changed; else a proxy or mirror is broken",
                    )
                position += _write(sink, chunk)
                with self._lock:
                    self._received += len(chunk)
                    file.prefix = position
                    file.grown.notify_all()
        if size is not None and position < size:
            raise request.Unsteady(f"{request.host(answer.url)} ended the answer too early")
        with self._lock:
            file.size, file.streamed = position, True

    def _expired(self, file: _File, location: str, error: request.Expired) -> None:
        with self._lock:
            self._check()
            if file.location != location:  # Another worker met this before.
                return
            if file.refused:
                raise ModelError(
                    f"{file.wanted.name} cannot be downloaded",
                    f"{error}, to an address that {request.host(file.wanted.url)} just gave",
                    "check this machine's clock, and whether a firewall blocks that host",
                ) from None
            file.location, file.refused = "", True

    def _unsteady(self, file: _File, outage: int, error: request.Unsteady) -> None:
        with self._lock:
            self._check()
            now = time.monotonic()
            if error.busy and outage == file.patience.outage:
                self._pace.slower(now)
            told = now < self._quiet_until
            if error.wait_s is not None:
                self._quiet_until = max(self._quiet_until, now + error.wait_s)
            jitter = random.uniform(0.75, 1.25)
            go_on = file.patience.failed(outage, now, error.wait_s, jitter)
            if file.patience.tries > ranges.TRIES // 2:
                file.location = ""  # Another host may have it, too.
        if not go_on:
            raise ModelError(
                f"{file.wanted.name}: the download does not get on",
                f"{error} ({ranges.TRIES} tries without a new byte)",
                "check the network and run the same again: it goes on where this one ended",
            ) from None
        if error.wait_s and not told:
            console.say(self._who, f"{error}: waiting {console.duration(error.wait_s)}, as it asks")


def _write(sink: Any, data: bytes) -> int:
    rest = memoryview(data)
    while rest:
        rest = rest[sink.write(rest) :]
    return len(data)


class _Meter:
    """How far it is, how fast lately, and how long it will take."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._begun = time.monotonic()

    def text(self, now: float, received: int, all_files: Sequence[_File]) -> str:
        """One line, '' while there is nothing to say."""
        self._samples.append((now, received))
        while now - self._samples[0][0] > _SPEED_OVER_S:
            self._samples.popleft()
        since, before = self._samples[0]
        if now - self._begun < _SILENT_S or received == before:
            return ""
        coming = [file for file in all_files if not file.landed or file.arrived]
        done = sum(file.arrived for file in coming)
        total = sum(file.size or 0 for file in coming)
        speed = (received - before) / (now - since)
        pace = f"{files.human_size(speed)}/s"
        if any(file.size is None for file in coming):
            return f"{files.human_size(done)}, {pace}"
        left = console.duration((total - done) / speed)
        of = f"{files.human_size(done)} of {files.human_size(total)}"
        return f"{done * 100 // max(total, 1)} %, {of}, {pace}, {left} left"
