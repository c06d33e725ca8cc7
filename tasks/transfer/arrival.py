"""The state of one file that is being downloaded."""

from __future__ import annotations

import threading

from tasks.files import FileSum
from tasks.transfer import ranges
from tasks.transfer.incomplete import Incomplete, Wanted


class Arrival:
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

    def begin(self, safe: ranges.Spans) -> ranges.Plan:
        """Get ready for ranges; the size is known, and `safe` is there already."""
        assert self.size is not None
        self.disk.begin(self.size, self.validator, safe)
        self.plan = ranges.Plan(self.size, safe)
        return self.plan

    def restart(self) -> None:
        """Begin anew, as one stream."""
        self.plan, self.whole, self.prefix = None, True, 0
        self.restarts += 1

    def offer(self, now: float, connections: int) -> ranges.Piece | None:
        """What one of so many connections should ask for; None: nothing at this time."""
        if not self.ready or now < self.patience.until or self.asking:
            return None
        if self.plan:
            return self.plan.take(connections)
        if self.busy or self.streamed:
            return None
        return ranges.Piece(0, ranges.MIB)
