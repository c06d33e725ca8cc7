"""The connections of a download: threads that ask for ranges and write what comes."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks import console, files
from tasks.transfer import errors, incomplete, ranges, request
from tasks.transfer.arrival import Arrival
from tasks.transfer.incomplete import Wanted

if TYPE_CHECKING:
    import httpx2

_TICK_S = 0.1
_STEP, _STEP_S = 512 << 10, 0.25
"""Bytes or seconds after which what has arrived is journaled."""
_END_S = 0.5
"""How long to wait for threads at the end; who is stuck in the network is left behind."""


class Over(Exception):
    """The whole download ends; whoever notices just stops."""


class Workers:
    """Threads that share the connections, and the state of all that they download."""

    def __init__(
        self, wanted: Sequence[Wanted], headers: Mapping[str, str], client: httpx2.Client, who: str
    ) -> None:
        self._headers, self._client, self._who = headers, client, who
        self.lock = threading.Lock()
        self.ended = threading.Condition(self.lock)
        """A file has landed, or all is over."""
        self.free = threading.Condition(self.lock)
        """There may be something to ask for."""
        self.arrivals = [Arrival(one, self.lock) for one in wanted]
        self.error: BaseException | None = None
        """What ended it, once it is `over`."""
        self.over = False
        self.received = 0
        """Bytes, in this run."""
        self._pace = ranges.Pace()
        self._latency = 0.0
        self._quiet_until = 0.0
        """A server asked to be left alone until then."""
        self._streams: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def start(self, work: Callable[..., None], *about: Any) -> threading.Thread:
        """Run in a thread whose failure ends everything."""
        # A daemon: one that is stuck in the network must not keep a process from its end.
        thread = threading.Thread(target=self._guarded, args=(work, *about), daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _guarded(self, work: Callable[..., None], *about: Any) -> None:
        try:
            work(*about)
        except Over:
            pass
        except BaseException as error:
            with self.lock:
                if not self.over:
                    self.error, self.over = error, True
                self._wake()

    def end(self) -> None:
        """Stop all threads; what they have written so far is kept."""
        with self.lock:
            self.over = True
            self._wake()
            for stream in self._streams:
                # Wakes who reads from it. Not TLS's own shutdown, which belongs to the reader.
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(stream, socket.SHUT_RDWR)
        deadline = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self.lock:
            for file in self.arrivals:
                file.disk.close()

    def _wake(self) -> None:
        self.ended.notify_all()
        self.free.notify_all()
        for file in self.arrivals:
            file.grown.notify_all()

    def check(self) -> None:
        """Raises Over once it is."""
        if self.over:
            raise Over

    def observe(self, now: float) -> None:
        """Adapt the number of connections; to be called often, with the lock held."""
        self._pace.observe(now, self.received, len(self._streams), self._latency)

    def begin(self) -> None:
        """Start all workers."""
        for number in range(ranges.CONNECTIONS):
            self.start(self._work, number)

    def _work(self, number: int) -> None:
        while True:
            file, piece = self._next(number)
            try:
                with files.storage(file.wanted.target.parent):
                    self._serve(file, piece)
            finally:
                with self.lock:
                    file.busy -= 1
                    if file.plan:
                        file.plan.release(piece)
                    file.grown.notify_all()
                    self.free.notify_all()

    def _next(self, number: int) -> tuple[Arrival, ranges.Piece]:
        with self.lock:
            while True:
                self.check()
                now = time.monotonic()
                if number >= self._pace.level or now < self._quiet_until:
                    self.ended.wait(_TICK_S)
                    continue
                for file in self.arrivals:
                    if piece := file.offer(now, self._pace.level):
                        file.busy += 1
                        file.asking = not file.location
                        return file, piece
                self.free.wait(_TICK_S)

    def _serve(self, file: Arrival, piece: ranges.Piece) -> None:
        with self.lock:
            outage, location, restarts = file.patience.outage, file.location, file.restarts
            span = None if file.whole else (piece.position, piece.end)
        wanted, began = file.wanted, time.monotonic()
        url = location or wanted.url
        try:
            with request.ask(
                self._client, wanted, url, self._headers, span, file.validator
            ) as answer:
                with self.lock:
                    self._latency = (self._latency + time.monotonic() - began) / 2
                    self.check()
                    receive = self._accept(file, piece, answer, restarts)
                with self._streaming(answer):
                    receive()
        except request.NoRanges:
            with self.lock:
                file.restart()
        except request.NeedsXet:
            with self.lock:
                file.restart()
                file.xet, file.ready = True, False
        except request.Expired as error:
            self._expired(file, location, error)
        except request.Unsteady as error:
            self._unsteady(file, outage, error)
        finally:
            if not location:
                with self.lock:
                    file.asking = False

    def _accept(
        self, file: Arrival, piece: ranges.Piece, answer: request.Answer, restarts: int
    ) -> Callable[[], None]:
        """What to do with this answer; the lock is held."""
        if answer.total is not None and file.wanted.size not in (None, answer.total):
            why = f"has {answer.total} bytes of it, not {file.wanted.size}"
            raise errors.unexpected(file.wanted, answer.url, why)
        file.location, file.asking = answer.url, False
        if file.restarts != restarts:
            return lambda: None
        if answer.partial and answer.total is not None and file.plan is None and not file.whole:
            file.size = answer.total
            file.validator = "" if file.wanted.expected else answer.validator
            incomplete.check_room([dataclasses.replace(file.wanted, size=answer.total)])
            plan = file.begin(ranges.Spans())
            piece.end = min(piece.end, answer.total)
            plan.asked.append(piece)
        same = file.validator in ("", answer.validator) and answer.total in (None, file.size)
        if answer.partial and file.plan and same:
            self.free.notify_all()
            return lambda: self._receive_part(file, piece, answer, restarts)
        # Ranges are refused, or the content is another than before.
        kept = file.plan and file.plan.safe.total and file.wanted.expected
        if kept and (answer.total is None or file.patience.tries < 2):
            # Much may be there already, and this may be a login page of the network.
            raise request.Unsteady(f"{errors.host_of(answer.url)} sends no part, but all of it")
        file.restart()
        if answer.partial or file.busy > 1:
            return lambda: None
        file.size = file.wanted.size if answer.total is None else answer.total
        file.disk.begin_unjournaled()
        return lambda: self._receive_whole(file, answer)

    @contextlib.contextmanager
    def _streaming(self, answer: request.Answer) -> Iterator[None]:
        stream = answer.response.extensions["network_stream"].get_extra_info("socket")
        with self.lock:
            self.check()
            self._streams.add(stream)
        try:
            yield
        finally:
            with self.lock:
                self._streams.discard(stream)

    def _receive_part(
        self, file: Arrival, piece: ranges.Piece, answer: request.Answer, restarts: int
    ) -> None:
        position, noted = piece.position, time.monotonic()

        def journal() -> None:
            with self.lock:
                if file.restarts != restarts or file.plan is None or position == piece.position:
                    return
                file.disk.wrote(piece.position, position)
                self.received += position - piece.position
                file.plan.arrived(piece, position)
                file.patience.progressed()
                file.refused = False
                file.grown.notify_all()
                self.free.notify()

        with open(file.disk.path, "rb+", buffering=0) as sink:
            sink.seek(position)
            try:
                with request.transient(file.wanted, answer.url):
                    for chunk in answer.response.iter_raw():
                        self.check()
                        if file.restarts != restarts:
                            return
                        position += incomplete.write(sink, chunk[: piece.end - position])
                        now = time.monotonic()
                        if position - piece.position >= _STEP or now - noted >= _STEP_S:
                            journal()
                            noted = now
            finally:
                journal()  # Of a broken stream, too.
        if position < (answer.end or piece.end):
            raise request.Unsteady(f"{errors.host_of(answer.url)} ended the answer too early")

    def _receive_whole(self, file: Arrival, answer: request.Answer) -> None:
        position, size = 0, file.size
        with (
            open(file.disk.path, "rb+", buffering=0) as sink,
            request.transient(file.wanted, answer.url),
        ):
            for chunk in answer.response.iter_bytes():
                self.check()
                if size is not None and position + len(chunk) > size:
                    why = f"sends more than its {size} bytes"
                    raise errors.unexpected(file.wanted, answer.url, why)
                position += incomplete.write(sink, chunk)
                with self.lock:
                    self.received += len(chunk)
                    file.prefix = position
                    file.grown.notify_all()
        if size is not None and position < size:
            raise request.Unsteady(f"{errors.host_of(answer.url)} ended the answer too early")
        with self.lock:
            file.size, file.streamed = position, True

    def _expired(self, file: Arrival, location: str, error: request.Expired) -> None:
        with self.lock:
            self.check()
            if file.location != location:  # Another worker met this before.
                return
            if file.refused:
                raise errors.locked_out(file.wanted, error) from None
            file.location, file.refused = "", True

    def _unsteady(self, file: Arrival, outage: int, error: request.Unsteady) -> None:
        with self.lock:
            self.check()
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
            raise errors.given_up(file.wanted, error) from None
        if error.wait_s and not told:
            console.say(self._who, f"{error}: waiting {console.duration(error.wait_s)}, as it asks")
