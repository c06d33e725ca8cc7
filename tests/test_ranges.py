"""Which bytes to ask for, how many at once, when again: without files, network or clock."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tasks.transfer import ranges
from tasks.transfer.ranges import BUDGET, MIB, Pace, Patience, Plan, Spans


def spans(*parts: tuple[int, int]) -> Spans:
    made = Spans()
    for start, end in parts:
        made.add(start, end)
    return made


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))), st.integers(0, 70))
def test_spans_are_the_set_of_their_bytes(parts: list[tuple[int, int]], size: int) -> None:
    made = spans(*parts)
    there = {byte for start, end in parts for byte in range(start, end)}
    assert made.total == len(there)
    assert {byte for start, end in made for byte in range(start, end)} == there
    assert all(end < start for (_, end), (start, _) in pairwise(made))
    assert made.prefix == next(byte for byte in range(100) if byte not in there)
    missing = {byte for start, end in made.gaps(size) for byte in range(start, end)}
    assert missing == set(range(size)) - there
    assert made.below(size).total == len(there & set(range(size)))


@given(
    st.integers(0, 100 * MIB),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3), st.floats(0, 1)), max_size=200),
    st.lists(st.tuples(st.integers(0, 100 * MIB), st.integers(0, 100 * MIB)), max_size=4),
)
def test_what_is_asked_for_stays_within_the_budget_and_all_arrives_once(
    size: int, moves: list[tuple[int, int, float]], before: list[tuple[int, int]]
) -> None:
    plan = Plan(size, spans(*before).below(size))
    missing, arrived = size - plan.safe.total, 0
    level = 8
    # Whatever the connections do, and then steadily to the end.
    for which, what, part in [*moves, *[(0, 1, 1.0), (0, 0, 1.0)] * 200]:
        if what == 0 and len(plan.asked) < level:
            plan.take(level)
        elif plan.asked:
            piece = plan.asked[which % len(plan.asked)]
            to = piece.position + int((piece.end - piece.position) * part)
            if what < 3:
                arrived += to - piece.position
                plan.arrived(piece, to)
            if what == 2 or to == piece.end:
                plan.release(piece)
        if what == 3:
            level = 1 + which
        asked = [(piece.position, piece.end) for piece in plan.asked]
        assert sum(end - start for start, end in asked) <= BUDGET
        taken = sorted([*asked, *plan.safe])
        assert all(end <= start for (_, end), (start, _) in pairwise(taken))
    assert plan.complete
    assert arrived == missing


def test_a_single_connection_may_use_the_whole_budget() -> None:
    piece = Plan(100 * MIB).take(1)
    assert piece and (piece.position, piece.end) == (0, BUDGET)


def test_crumbs_are_not_asked_for_while_the_budget_is_used_up() -> None:
    plan = Plan(100 * MIB)
    first = plan.take(1)
    assert first and plan.take(2) is None
    plan.arrived(first, MIB - 1)
    assert plan.take(2) is None
    plan.arrived(first, MIB)
    second = plan.take(2)
    assert second and (second.position, second.end) == (BUDGET, BUDGET + MIB)


def test_a_journal_is_read_as_far_as_it_is_whole() -> None:
    text = ranges.heading(500, '"etag with blanks"') + ranges.note(0, 10) + ranges.note(20, 30)
    size, validator, found = ranges.read_journal(text) or (0, "", Spans())
    assert (size, validator, list(found)) == (500, '"etag with blanks"', [(0, 10), (20, 30)])


@given(st.data())
def test_a_damaged_journal_claims_nothing_new(data: st.DataObject) -> None:
    notes = [(0, 10), (20, 30), (10, 20), (40, 50)]
    text = ranges.heading(500, "") + b"".join(ranges.note(*one) for one in notes)
    at = data.draw(st.integers(0, len(text) - 1))
    byte = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(at, len(text)))
    damaged = text[:at] + bytes([byte]) + text[at + 1 : cut]
    if found := ranges.read_journal(damaged):
        assert found[0] == 500
        claimed = {byte for start, end in found[2] for byte in range(start, end)}
        assert claimed <= {byte for start, end in notes for byte in range(start, end)}


def test_waits_grow_and_end() -> None:
    patience, now, waits = Patience(), 0.0, []
    while patience.failed(patience.outage, now, None, 1.25):
        waits.append(patience.until - now)
        now = patience.until
    assert len(waits) == ranges.TRIES - 1
    assert waits == sorted(waits) and sum(waits) < 61


def test_a_new_byte_makes_patience_new() -> None:
    patience = Patience()
    for _ in range(100):
        assert patience.failed(patience.outage, 0.0, None, 1.0)
        patience.progressed()


def test_connections_that_fail_together_count_once() -> None:
    patience = Patience()
    for _ in range(8):
        assert patience.failed(0, 10.0, None, 1.0)
    assert patience.tries == 1


def test_what_a_server_asks_to_wait_is_kept_to() -> None:
    patience = Patience()
    assert patience.failed(0, 10.0, 60.0, 1.0)
    assert patience.until == 70.0
    assert patience.failed(0, 20.0, 5.0, 1.0)
    assert patience.until == 70.0


def settle(pace: Pace, limit: float, each: float, seconds: float, start: float = 0.0) -> float:
    """Let time pass where each connection brings `each` and all together at most `limit`."""
    now, total = start, int(start * 1000)
    for _ in range(int(seconds * 10)):
        now += 0.1
        total += int(min(limit, each * pace.level) * 0.1)
        pace.observe(now, total, pace.level, 0.01)
    return now


def test_connections_are_added_while_they_help() -> None:
    pace = Pace()
    settle(pace, limit=1e9, each=1e6, seconds=3)
    assert pace.level == ranges.CONNECTIONS


def test_connections_that_do_not_help_are_given_up() -> None:
    pace = Pace()
    settle(pace, limit=6e6, each=2e6, seconds=5)
    assert pace.level == 4
    pace = Pace()
    settle(pace, limit=1e6, each=1e6, seconds=5)
    assert pace.level == 2


def test_a_network_that_got_better_is_noticed() -> None:
    pace = Pace()
    now = settle(pace, limit=1e6, each=1e6, seconds=5)
    settle(pace, limit=1e9, each=1e6, seconds=30, start=now)
    assert pace.level == ranges.CONNECTIONS


def test_a_server_that_has_enough_of_us_gets_half() -> None:
    pace = Pace()
    now = settle(pace, limit=1e9, each=1e6, seconds=3)
    pace.slower(now)
    assert pace.level == 4
    for _ in range(5):
        pace.slower(now)
    assert pace.level == 1
