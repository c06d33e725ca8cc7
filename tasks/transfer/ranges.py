"""Which bytes of a download are there, which to ask for next, by how many connections, how often.

Nothing here acts: no files, no network, and the time comes from outside.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

MIB = 1 << 20
BUDGET = 16 * MIB
"""Bytes of a file that may be asked for and not yet be safe: what a kill costs at most."""
CONNECTIONS = 8
"""At most, over all files."""
TRIES = 6
"""In a row, without a new byte."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0
"""Between tries, if the server names no time; grows fourfold: 47 s in all."""
TRIAL_EVERY_S = 10.0
WINDOW_S = 0.2
_BEGIN = "llamake-ranges-1"


class Spans:
    """Parts of a file, as half-open ranges (start, end): sorted, merged, disjoint."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._spans)

    def add(self, start: int, end: int) -> None:
        """Include [start, end)."""
        if start >= end:
            return
        apart = []
        for low, high in self._spans:
            if high < start or low > end:
                apart.append((low, high))
            else:
                start, end = min(start, low), max(end, high)
        self._spans = sorted([*apart, (start, end)])

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(end - start for start, end in self._spans)

    @property
    def prefix(self) -> int:
        """Bytes from the start of the file to the first gap."""
        return self._spans[0][1] if self._spans and self._spans[0][0] == 0 else 0

    def gaps(self, size: int) -> Iterator[tuple[int, int]]:
        """What is missing below `size`."""
        position = 0
        for start, end in self._spans:
            if position < min(start, size):
                yield position, min(start, size)
            position = end
        if position < size:
            yield position, size

    def below(self, size: int) -> Spans:
        """The part below `size`."""
        cut = Spans()
        for start, end in self._spans:
            cut.add(start, min(end, size))
        return cut


@dataclass(eq=False)
class Piece:
    """A range that is asked for; `position` moves on as its bytes become safe."""

    position: int
    end: int


class Plan:
    """What of a file is safe, what is asked for, and what to ask for next."""

    def __init__(self, size: int, safe: Spans | None = None) -> None:
        self.size, self.safe = size, safe or Spans()
        self.asked: list[Piece] = []

    @property
    def complete(self) -> bool:
        """True once every byte is safe."""
        return self.safe.total >= self.size

    def take(self, connections: int) -> Piece | None:
        """The next range for one of so many connections; None while the budget is used up."""
        busy = Spans()
        for start, end in self.safe:
            busy.add(start, end)
        for piece in self.asked:
            busy.add(piece.position, piece.end)
        gap = next(busy.gaps(self.size), None)
        if gap is None:
            return None
        free = BUDGET - sum(piece.end - piece.position for piece in self.asked)
        # Half as much again as an equal share: the others' ranges are half done on average.
        length = min(free, BUDGET * 3 // 2 // connections, gap[1] - gap[0])
        if length < min(MIB, gap[1] - gap[0]):
            return None
        piece = Piece(gap[0], gap[0] + length)
        self.asked.append(piece)
        return piece

    def arrived(self, piece: Piece, position: int) -> None:
        """The range is safe up to `position`."""
        self.safe.add(piece.position, position)
        piece.position = position

    def release(self, piece: Piece) -> None:
        """Nobody waits for the rest of this range any more."""
        if piece in self.asked:
            self.asked.remove(piece)


def heading(size: int, validator: str) -> bytes:
    """A journal's first line: the file's size, and what names its content where no sum does."""
    return _sealed(f"{_BEGIN} {size} {validator}")


def note(start: int, end: int) -> bytes:
    """A journal's line: these bytes were written."""
    return _sealed(f"{start} {end}")


def read_journal(text: bytes) -> tuple[int, str, Spans] | None:
    """Size, validator and safe parts, as far as nothing is damaged; None where nothing is left."""
    spans = Spans()
    begin: tuple[int, str] | None = None
    for line in text.split(b"\n"):
        content, _, seal = line.rpartition(b" ")
        if seal != _seal(content):
            break
        words = content.decode(errors="replace").split(" ", 2)
        try:
            if begin is not None:
                spans.add(int(words[0]), int(words[1]))
            elif words[0] == _BEGIN:
                begin = int(words[1]), words[2]
            else:
                break
        except (ValueError, IndexError):
            break
    return None if begin is None else (*begin, spans)


def _sealed(content: str) -> bytes:
    raw = content.encode()
    return b"%s %s\n" % (raw, _seal(raw))


def _seal(raw: bytes) -> bytes:
    return b"%08x" % zlib.crc32(raw)


class Patience:
    """When to try again after a failure, and when to give up."""

    def __init__(self) -> None:
        self.tries = 0
        self.outage = 0
        """Grows with every failure that counts."""
        self.until = 0.0
        """No new request before this time."""

    def failed(self, outage: int, now: float, asked_s: float | None, jitter: float) -> bool:
        """Account for a failure of a request that began in `outage`; False: give up.

        Connections that fail together count once. `asked_s` is what the server asks to wait,
        `jitter` a factor around 1.
        """
        if asked_s is not None:
            self.until = max(self.until, now + asked_s)
        if outage != self.outage:
            return True
        self.outage += 1
        self.tries += 1
        if asked_s is None:
            wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 4 ** (self.tries - 1))
            self.until = max(self.until, now + wait * jitter)
        return self.tries < TRIES

    def progressed(self) -> None:
        """New bytes came."""
        self.tries = 0


class Pace:
    """How many connections: doubled for as long as that makes the whole faster."""

    def __init__(self) -> None:
        self.level = 2
        """Connections to use now."""
        self._settled = 2
        self._rate = 0.0
        """Bytes per second at the settled level."""
        self._begun: tuple[float, int] | None = None
        self._changed = self._next_trial = 0.0

    def observe(self, now: float, total: int, streaming: int, latency: float) -> None:
        """Tell of `total` bytes until now, over so many live connections.

        `latency` is the time in seconds from a request to its first byte.
        """
        if self._begun is None:
            # What new connections are worth shows only once they deliver.
            if streaming * 4 >= self.level * 3 or now - self._changed > 2:
                self._begun = now, total
            return
        since, before = self._begun
        if now - since < max(WINDOW_S, min(2.0, 4 * latency)) or total == before:
            return
        rate = (total - before) / (now - since)
        self._begun = None
        if self.level > self._settled and rate < self._rate * 1.15:
            self._change(self._settled, now)
            self._next_trial = now + TRIAL_EVERY_S
            return
        self._settled, self._rate = self.level, rate
        if self.level < CONNECTIONS and now >= self._next_trial:
            self._change(min(CONNECTIONS, self.level * 2), now)

    def slower(self, now: float) -> None:
        """The server has enough of us: half as many, for a while."""
        self._settled, self._rate = max(1, self.level // 2), 0.0
        self._change(self._settled, now)
        self._next_trial = now + TRIAL_EVERY_S

    def _change(self, level: int, now: float) -> None:
        self.level, self._changed, self._begun = level, now, None
