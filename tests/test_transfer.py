"""Downloads from a hub: once, in ranges, resumed, verified, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from downloads import MIB, REPO, TOKEN, Place, place, without_sum

from tasks.errors import ModelError, StorageError
from tasks.transfer import fetch, meter, ranges
from tasks.transfer.fetch import Wanted
from tasks.transfer.incomplete import Incomplete

__all__ = ["place"]


def test_files_land_verified_and_nothing_else_stays(place: Place) -> None:
    wanted = place.add(big_gguf=20 * MIB, config_json=700, empty_txt=0, other_gguf=3 * MIB + 1)
    sums = place.fetch(*wanted)
    assert place.names() == {"big.gguf", "config.json", "empty.txt", "other.gguf"}
    for one in wanted:
        assert place.is_there(one)
        assert sums[one.target].vouched_by(one.target.stat())
        assert sums[one.target].sha256 == hashlib.sha256(one.target.read_bytes()).hexdigest()
    assert place.hub.bytes_sent == sum(one.size or 0 for one in wanted)


def test_the_hub_is_asked_once_and_the_token_goes_nowhere_else(place: Place) -> None:
    [big] = place.add(big_gguf=40 * MIB)
    place.hub.tokens = {TOKEN: set()}
    place.headers = {"authorization": f"Bearer {TOKEN}"}
    place.fetch(big)
    assert [record.authorized for record in place.hub.asked("resolve")] == [True]
    assert len(place.hub.asked("cdn")) > 2
    assert not place.hub.leaked


def test_what_is_there_is_not_fetched_again(place: Place) -> None:
    wanted = place.add(big_gguf=MIB, config_json=700)
    first = place.fetch(*wanted)
    place.hub.reset()
    assert place.fetch(*wanted) == first
    assert not place.hub.requests


def test_what_is_there_but_wrong_is_moved_aside(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.folder.mkdir()
    mine = b"x" * MIB
    big.target.write_bytes(mine)
    place.fetch(big)
    assert place.is_there(big)
    aside = f"big.gguf.{hashlib.sha256(mine).hexdigest()[:8]}.replaced"
    assert (place.folder / aside).read_bytes() == mine


def test_connections_are_added_where_each_is_slow(place: Place) -> None:
    [big] = place.add(big_gguf=48 * MIB)
    place.hub.fault("rate", where="cdn", bytes_per_s=8 * MIB)
    place.fetch(big)
    assert place.is_there(big)
    assert place.hub.most_at_once("cdn") == ranges.CONNECTIONS
    assert place.hub.bytes_sent == big.size


CLIENT = """
import sys
from pathlib import Path
from tasks import process
from tasks.transfer import fetch
process.install_signal_handlers()
from huggingface_hub.utils._http import get_session
url, target, size, sha256 = sys.argv[1:]
try:
    found = fetch.fetch(
        [fetch.Wanted(url, Path(target), int(size), sha256)], headers={}, client=get_session()
    )
except process.Stopped:
    sys.exit(130)
print(next(iter(found.values())).sha256)
"""


def start(place: Place, wanted: Wanted, **environment: str) -> subprocess.Popen[str]:
    """Fetch in a process of its own."""
    argv = [wanted.url, str(wanted.target), str(wanted.size), wanted.sha256]
    root = str(Path(__file__).parent.parent)
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, *argv],
        env=place.hub.environment(**{"PYTHONPATH": root, **environment}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_three_kills_cost_at_most_16_mib_each(place: Place) -> None:
    [big] = place.add(big_gguf=96 * MIB)
    size = big.size or 0
    rate = place.hub.fault("rate", where="cdn", bytes_per_s=16 * MIB)
    for after in (20 * MIB, 45 * MIB, 80 * MIB):
        child = start(place, big)
        place.hub.wait(lambda: place.hub.bytes_sent >= after, "bytes")  # noqa: B023
        child.kill()
        child.wait()
    rate.clear()
    place.hub.rest()
    before = place.hub.bytes_sent
    output, _ = start(place, big).communicate()
    assert output.strip() == big.sha256
    assert place.is_there(big)
    assert place.names() == {"big.gguf"}
    assert size - before < place.hub.bytes_sent - before < size - 40 * MIB
    assert place.hub.bytes_sent <= size + 3 * ranges.BUDGET


@pytest.mark.skipif(os.name == "nt", reason="no signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_stalled_download_at_once(place: Place, number: signal.Signals) -> None:
    [big] = place.add(big_gguf=4 * MIB)
    stall = place.hub.fault("stall", where="cdn", after=MIB)
    child = start(place, big)
    place.hub.wait(lambda: stall.hits > 0 and place.hub.bytes_sent >= MIB, "stalled")
    child.send_signal(number)
    # A silent server alone would hold it for 30 s.
    assert child.wait(timeout=20) == 130
    stall.clear()
    place.fetch(big)
    assert place.is_there(big)


def test_who_is_stopped_goes_on_later(place: Place) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    place.interrupt(big, after=6 * MIB)
    before = place.hub.bytes_sent
    place.fetch(big)
    assert place.is_there(big)
    assert place.names() == {"big.gguf"}
    assert place.hub.bytes_sent - before < (big.size or 0)


@pytest.mark.parametrize(
    "damage", ["journal", "no journal", "torn", "shorter", "longer", "no file"]
)
def test_only_what_is_certain_is_kept(place: Place, damage: str) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    place.interrupt(big, after=6 * MIB)
    [journal] = place.folder.glob(".*.journal")
    part = journal.with_suffix("")
    assert part.name == f".big.gguf.{big.sha256[:12]}.incomplete"
    if damage == "journal":
        journal.write_bytes(os.urandom(100))
    if damage == "no journal":
        journal.unlink()
    if damage == "torn":
        journal.write_bytes(journal.read_bytes()[:-3])
    if damage == "shorter":
        os.truncate(part, MIB)
    if damage == "longer":
        os.truncate(part, 25 * MIB)
    if damage == "no file":
        part.unlink()
    before = place.hub.bytes_sent
    place.fetch(big)
    assert place.is_there(big)
    again = place.hub.bytes_sent - before
    assert again < 24 * MIB if damage == "torn" else again >= 23 * MIB


def test_two_processes_fetch_a_file_once(place: Place) -> None:
    [big] = place.add(big_gguf=12 * MIB)
    place.hub.fault("rate", where="cdn", bytes_per_s=8 * MIB)
    both = [start(place, big), start(place, big)]
    outputs = [child.communicate()[0] for child in both]
    assert [output.split()[-1] for output in outputs] == [big.sha256] * 2
    assert sum("waiting for another process" in output for output in outputs) == 1
    assert place.hub.bytes_sent == big.size


def test_a_plain_address_says_its_size_itself(place: Place) -> None:
    wanted = place.plain("some.gguf", 5 * MIB)
    sums = place.fetch(wanted)
    assert place.is_there(wanted)
    assert sums[wanted.target].size == 5 * MIB
    assert place.hub.bytes_sent == 5 * MIB


def test_a_plain_address_with_a_checksum_is_verified(place: Place) -> None:
    wanted = place.plain("some.gguf", MIB)
    with pytest.raises(ModelError, match="is not what it should be"):
        place.fetch(replace(wanted, sha256="0" * 64))
    assert not wanted.target.exists()


@pytest.mark.parametrize("size", [24 * MIB, 25 * MIB])
def test_without_a_checksum_the_version_decides_whether_to_go_on(place: Place, size: int) -> None:
    wanted = place.plain("some.gguf", 24 * MIB)
    place.interrupt(wanted, after=6 * MIB)
    before = place.hub.bytes_sent
    place.fetch(wanted)
    assert place.is_there(wanted)
    assert place.hub.bytes_sent - before < 24 * MIB
    wanted = place.plain("other.gguf", 24 * MIB)
    place.interrupt(wanted, after=6 * MIB)
    wanted = place.plain("other.gguf", size)
    place.fetch(wanted)
    assert place.is_there(wanted)


def test_no_byte_is_asked_for_where_the_disk_is_too_small(place: Place) -> None:
    [big, other] = place.add(big_gguf=MIB, other_gguf=MIB)
    with pytest.raises(StorageError, match=r"10000000\.0 GB are still to come, .* free"):
        place.fetch(replace(big, size=10**16), other)
    assert not place.hub.requests


def test_a_sparse_file_holds_less_than_it_seems(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.folder.mkdir()
    part = place.folder / f".big.gguf.{big.sha256[:12]}.incomplete"
    size = 4 << 40
    part.touch()
    try:
        os.truncate(part, size)
    except OSError:
        pytest.skip("no files of this size here")
    if shutil.disk_usage(place.folder).free > size:
        pytest.skip("a disk that large")
    with pytest.raises(StorageError):
        place.fetch(replace(big, size=size))


def test_progress_in_one_line(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "SILENT_S", 0.0)
    [big] = place.add(big_gguf=16 * MIB)
    place.hub.fault("rate", where="cdn", bytes_per_s=8 * MIB)
    place.fetch(big)
    lines = capsys.readouterr().out.splitlines()
    form = r"download +\d+ %, [\d.]+ [kM]B of 16\.8 MB, [\d.]+ [kM]?B/s, [\d.]+ s left"
    assert any(re.fullmatch(form, line) for line in lines), lines


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_file_that_is_already_here_is_adopted(
    place: Place, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "copy":

        def refuse(*_: object) -> None:
            raise OSError("another disk")

        monkeypatch.setattr(os, "link", refuse)
    [big, config] = place.add(big_gguf=MIB, config_json=700)
    cache = place.source / "cache"
    cache.mkdir()
    (cache / "blob").write_bytes((place.source / "big.gguf").read_bytes())
    (cache / "wrong").write_bytes(os.urandom(MIB))
    (cache / "snapshot").symlink_to("blob")
    found = fetch.reuse([cache / "gone", cache / "wrong", cache / "snapshot"], big)
    assert found and found.vouched_by(big.target.stat()) and found.sha256 == big.sha256
    assert not big.target.is_symlink()
    assert big.target.samefile(cache / "blob") == (how == "link")
    assert fetch.reuse([place.source / "config.json"], config)
    assert place.is_there(config)
    assert place.names() == {"big.gguf", "config.json"}
    place.fetch(big, config)
    assert not place.hub.requests


def test_what_is_adopted_needs_no_unfinished_download(place: Place) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    place.interrupt(big, after=6 * MIB)
    assert len(place.names()) == 2
    assert fetch.reuse([place.source / "big.gguf"], big)
    assert place.names() == {"big.gguf"}


def test_only_the_same_content_is_adopted(place: Place) -> None:
    [big, other] = place.add(big_gguf=MIB, other_gguf=MIB)
    assert fetch.reuse([place.source / "other.gguf", place.source], big) is None
    assert fetch.reuse([place.source / "other.gguf"], without_sum(other)) is None
    assert place.names() == set()


def test_reuse_keeps_what_is_right_and_moves_what_is_not(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.fetch(big)
    assert fetch.reuse([], big)
    big.target.write_bytes(b"mine")
    assert fetch.reuse([], big) is None
    assert [name for name in place.names() if name.endswith(".replaced")]


def test_a_plain_download_has_no_token_to_lose(place: Place) -> None:
    wanted = place.plain("some.gguf", MIB)
    place.fetch(wanted)
    assert not any(record.authorized for record in place.hub.asked("plain"))
    assert REPO not in place.hub.repos


def test_what_is_fetched_anew_needs_its_room_once_more(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.fetch(big)
    assert Incomplete(big).missing() == 0
    assert Incomplete(replace(big, anew=True)).missing() == MIB
