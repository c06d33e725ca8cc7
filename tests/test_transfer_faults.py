"""Downloads from a hub that fails in every way: retried, resumed, or explained; never wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.errors as hub_errors
import pytest
from downloads import MIB, TOKEN, Place, place, without_sum

from tasks.errors import ModelError, StorageError
from tasks.transfer import fetch, ranges, request
from tasks.transfer.fetch import Wanted

__all__ = ["place"]


@contextmanager
def small_disk(folder: Path, options: str = "mode=755") -> Iterator[None]:
    """A file system of its own in `folder`."""
    folder.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", options, "llamake-test", str(folder)]
    if os.name == "nt" or subprocess.run(argv, capture_output=True).returncode:
        pytest.skip("this user may not mount")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("where", ["resolve", "cdn"])
@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_statuses_that_may_pass_are_tried_again(place: Place, code: int, where: str) -> None:
    [big] = place.add(big_gguf=MIB)
    fault = place.hub.fault("status", where=where, code=code, times=3)
    place.fetch(big)
    assert place.is_there(big)
    assert fault.hits == 3
    assert place.hub.bytes_sent == big.size


@pytest.mark.parametrize("as_date", [False, True])
def test_what_a_server_asks_to_wait_is_waited(
    place: Place, as_date: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    [big] = place.add(big_gguf=MIB)
    after = datetime.now(timezone.utc) + timedelta(seconds=2) if as_date else 1
    place.hub.fault("status", where="cdn", code=429, retry_after=after, times=1)
    place.fetch(big)
    assert place.is_there(big)
    assert "429 Too Many Requests: waiting " in capsys.readouterr().out


def test_the_time_that_a_server_asks_for() -> None:
    assert request.retry_after({"retry-after": "120"}) == 120
    later = datetime.now(timezone.utc) + timedelta(hours=2)
    seconds = request.retry_after({"retry-after": later.strftime("%a, %d %b %Y %H:%M:%S GMT")})
    assert seconds is not None and 7000 < seconds <= 7200
    assert request.retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert request.retry_after({"retry-after": "soon"}) is None
    assert request.retry_after({"ratelimit": '"api";r=0;t=55'}) == 55
    assert request.retry_after({"ratelimit": '"api";r=9;t=55'}) is None


def test_a_server_that_wants_hours_is_taken_at_its_word(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    fault = place.hub.fault("status", where="cdn", code=429, retry_after=7200)
    with pytest.raises(ModelError, match="asks to wait 2 hours"):
        place.fetch(big)
    assert fault.hits == 1


def test_in_the_end_it_gives_up_and_says_how_it_goes_on(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    fault = place.hub.fault("status", where="resolve", code=503)
    with pytest.raises(ModelError, match=r"answers 503 Service Unavailable \(6 tries") as caught:
        place.fetch(big)
    assert "goes on where this one ended" in caught.value.fix
    assert fault.hits == ranges.TRIES


def test_nobody_listens(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.stop()
    with pytest.raises(ModelError, match="no connection to 127"):
        place.fetch(big)


def test_silence_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "SILENCE_S", 0.3)
    [big] = place.add(big_gguf=MIB)
    stall = place.hub.fault("stall", where="cdn", after=1000, times=1)
    place.fetch(big)
    assert place.is_there(big)
    stall.clear()


@pytest.mark.parametrize("kind", ["drop", "truncate"])
def test_what_arrived_of_a_broken_stream_is_kept(place: Place, kind: str) -> None:
    [big] = place.add(big_gguf=4 * MIB)
    fault = place.hub.fault(kind, where="cdn", after=300_000)
    place.fetch(big)
    assert place.is_there(big)
    assert fault.hits > 10
    if kind == "truncate":
        assert place.hub.bytes_sent == big.size


def test_a_server_without_ranges_gives_one_stream(place: Place) -> None:
    [big, other] = place.add(big_gguf=20 * MIB, other_gguf=MIB)
    place.hub.fault("no-range", where="cdn")
    place.fetch(big, other)
    assert place.is_there(big) and place.is_there(other)
    assert place.hub.bytes_sent == 21 * MIB
    assert place.names() == {"big.gguf", "other.gguf"}


def test_a_stream_that_cannot_be_resumed_begins_anew(place: Place) -> None:
    [big] = place.add(big_gguf=4 * MIB)
    place.hub.fault("no-range", where="cdn")
    place.hub.fault("truncate", where="cdn", after=MIB, times=2)
    place.fetch(big)
    assert place.is_there(big)
    assert place.hub.bytes_sent == 6 * MIB


def test_a_stream_that_cannot_be_resumed_is_given_up_in_the_end(place: Place) -> None:
    [big] = place.add(big_gguf=4 * MIB)
    place.hub.fault("no-range", where="cdn")
    fault = place.hub.fault("truncate", where="cdn", after=MIB)
    with pytest.raises(ModelError, match="does not get on"):
        place.fetch(big)
    assert fault.hits == ranges.TRIES
    assert not big.target.exists()


def test_ranges_that_are_refused_half_way(place: Place) -> None:
    [big] = place.add(big_gguf=40 * MIB)
    place.hub.fault("no-range", where="cdn", beyond=20 * MIB)
    place.hub.fault("rate", where="cdn", bytes_per_s=64 * MIB)
    place.fetch(big)
    assert place.is_there(big)


def test_a_login_page_of_the_network_costs_nothing_that_is_there(place: Place) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    place.interrupt(big, after=6 * MIB)
    with serving(b"please log in") as page, pytest.raises(ModelError, match="all of it"):
        place.fetch(replace(big, url=page))
    before = place.hub.bytes_sent
    place.fetch(big)
    assert place.is_there(big)
    assert place.hub.bytes_sent - before < 24 * MIB


@pytest.mark.parametrize("kind", ["size", "shift", "416"])
def test_an_answer_about_another_file_ends_it(place: Place, kind: str) -> None:
    [big] = place.add(big_gguf=MIB)
    if kind == "416":
        place.hub.fault("status", where="cdn", code=416)
    elif kind == "size":
        place.hub.fault("size", where="cdn", to=MIB + 1)
    else:
        place.interrupt(big, after=MIB // 4)
        place.hub.fault("shift", where="cdn")
    says = {"size": f"has {MIB + 1} bytes of it, not {MIB}", "shift": "another part"}
    with pytest.raises(ModelError, match=says.get(kind, "does not have the bytes")):
        place.fetch(big)
    assert not big.target.exists()


def test_a_whole_answer_of_another_size_ends_it(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.fault("no-range", where="cdn")
    with pytest.raises(ModelError, match=f"has {MIB} bytes of it, not {MIB - 1}"):
        place.fetch(replace(big, size=MIB - 1))


def test_damage_is_found_kept_aside_and_mended_by_the_next_run(place: Place) -> None:
    [big] = place.add(big_gguf=3 * MIB)
    for at in (MIB, 2 * MIB):
        place.hub.fault("flip", where="cdn", at=at, times=1)
        with pytest.raises(ModelError, match="is not what it should be") as caught:
            place.fetch(big)
        [aside] = place.names()
        assert re.fullmatch(r"big\.gguf\.[0-9a-f]{8}\.mismatch", aside)
        assert str(place.folder / aside) in caught.value.what
        assert big.sha256[:12] in caught.value.why
    place.fetch(big)
    assert place.is_there(big)
    assert place.names() == {"big.gguf", aside}


def test_damage_of_a_small_file_is_found(place: Place) -> None:
    [config] = place.add(config_json=700)
    assert config.git_sha1 and not config.sha256
    place.hub.fault("flip", at=10, times=1)
    with pytest.raises(ModelError, match=config.git_sha1[:12]):
        place.fetch(config)
    place.fetch(config)
    assert place.is_there(config)


def test_one_bad_file_stops_the_others(place: Place) -> None:
    [bad, big] = place.add(bad_gguf=MIB, big_gguf=30 * MIB)
    place.hub.fault("flip", name="bad.gguf", at=10, times=1)
    # Longer than this test would wait for.
    stall = place.hub.fault("stall", where="cdn", name="big.gguf", after=MIB)
    with pytest.raises(ModelError, match="bad"):
        place.fetch(bad, big)
    stall.clear()
    place.fetch(bad, big)
    assert place.is_there(bad) and place.is_there(big)


def test_addresses_that_expire_are_asked_for_again(place: Place) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    rate = place.hub.fault("rate", where="cdn", bytes_per_s=16 * MIB)

    def expire() -> None:
        place.hub.wait(lambda: place.hub.bytes_sent > 4 * MIB, "bytes")
        place.hub.expire_urls()

    thread = threading.Thread(target=expire)
    thread.start()
    place.fetch(big)
    thread.join()
    rate.clear()
    assert place.is_there(big)
    assert place.hub.bytes_sent == big.size
    assert len(place.hub.asked("resolve")) == 2


def test_a_storage_host_that_refuses_fresh_addresses(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.fault("expire", where="cdn")
    with pytest.raises(ModelError, match="just gave") as caught:
        place.fetch(big)
    assert "Signature" not in str(caught.value) and "/repos/" not in str(caught.value)
    assert len(place.hub.asked("cdn")) == 2


def test_what_the_hub_refuses_is_its_own_error_without_the_token(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.tokens = {TOKEN: set()}
    place.headers = {"authorization": f"Bearer {TOKEN}"}
    repo = place.hub.repos["org/model"]
    repo.gated = True
    with pytest.raises(hub_errors.GatedRepoError) as gated:
        place.fetch(big)
    repo.gated, repo.private = False, True
    with pytest.raises(hub_errors.RepositoryNotFoundError) as private:
        place.fetch(big)
    repo.private = False
    with pytest.raises(hub_errors.RemoteEntryNotFoundError) as missing:
        place.fetch(replace(big, url=f"{big.url}.no"))
    for caught in (gated, private, missing):
        error = caught.value
        seen: list[object] = [error, error.__cause__, error.__context__, error.response.headers]
        assert TOKEN not in str([seen, error.response.request.headers, vars(error)])


def test_a_missing_plain_file(place: Place) -> None:
    wanted = place.plain("some.gguf", 10)
    with pytest.raises(ModelError, match="answers 404 Not Found"):
        place.fetch(replace(wanted, url=f"{wanted.url}.no?token=secret"))


@contextmanager
def serving(content: bytes, *, redirect: bool = False) -> Iterator[str]:
    """A web server of one file that tells no length and gives no ranges, or only redirects."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if redirect:
                self.send_response(302)
                self.send_header("Location", "/again")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for at in range(0, len(content), 50_000):
                piece = content[at : at + 50_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/file.gguf"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_that_tells_no_size(place: Place) -> None:
    content = os.urandom(2 * MIB)
    with serving(content) as url:
        wanted = Wanted(url, place.folder / "file.gguf")
        assert place.fetch(wanted)[wanted.target].size == 2 * MIB
        assert wanted.target.read_bytes() == content
        with pytest.raises(ModelError, match="more than its 1000 bytes"):
            place.fetch(Wanted(url, place.folder / "other.gguf", size=1000))


def test_a_small_file_of_unknown_size_is_verified(place: Place) -> None:
    [config, empty] = place.add(config_json=700, empty_txt=0)
    content = (place.source / "config.json").read_bytes()
    with serving(content) as url:
        place.fetch(replace(config, size=None, url=url), replace(empty, size=None))
        assert place.is_there(config) and place.is_there(empty)
        with pytest.raises(ModelError, match="is not what it should be"):
            place.fetch(replace(config, target=place.folder / "x", git_sha1="0" * 40, url=url))


def test_a_server_that_redirects_in_circles(place: Place) -> None:
    with (
        serving(b"", redirect=True) as url,
        pytest.raises(ModelError, match="redirects in circles"),
    ):
        place.fetch(Wanted(url, place.folder / "file.gguf"))


def test_an_address_that_is_none(place: Place) -> None:
    with pytest.raises(ModelError, match="none that can be asked"):
        place.fetch(Wanted("ftp://example.org/x.gguf", place.folder / "x.gguf"))


def test_a_disk_that_gets_full(place: Place) -> None:
    with (
        small_disk(place.folder, "size=1m"),
        serving(os.urandom(2 * MIB)) as url,
        pytest.raises(StorageError, match="no space left"),
    ):
        place.fetch(Wanted(url, place.folder / "file.gguf"))


def test_what_is_already_on_the_disk_needs_no_more_room(place: Place) -> None:
    [big] = place.add(big_gguf=24 * MIB)
    with small_disk(place.folder, "size=25m"):
        place.interrupt(big, after=8 * MIB)
        place.fetch(big)
        assert place.is_there(big)
        assert fetch.reuse([place.source / "big.gguf"], big)


def test_another_disks_file_is_copied(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    with small_disk(place.folder):
        found = fetch.reuse([place.source / "big.gguf"], big)
        assert found and found.vouched_by(big.target.stat())
        assert place.is_there(big)
        assert place.names() == {"big.gguf"}


XET_CLIENT = """
import sys
from pathlib import Path
from huggingface_hub import constants
from huggingface_hub.utils._http import get_session
from tasks.transfer import fetch
from tasks.errors import LlamakeError
url, target, size, sha256, most = sys.argv[1:]
constants.MAX_HTTP_DOWNLOAD_SIZE = int(most)
one = fetch.Wanted(url, Path(target), int(size), sha256, label="big.gguf")
try:
    fetch.fetch([one], headers={}, client=get_session())
except LlamakeError as error:
    sys.exit(str(error))
"""

FAKE_XET = """
import os, shutil
class XetFileInfo:
    def __init__(self, hash, size):
        self.hash, self.size = hash, size
class Group:
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass
    def start_download_file(self, info, path):
        assert info.hash == os.environ["XET_HASH"]
        shutil.copyfile(os.environ["XET_SOURCE"], path)
class XetSession:
    def new_file_download_group(self, token, **_):
        assert token
        return Group()
    def sigint_abort(self):
        pass
"""


def by_xet(place: Place, big: Wanted, module: str, most: int = 10**9, **more: str) -> str:
    """Fetch in a process that has this for hf_xet; its output."""
    planted = place.source.parent / "planted"
    planted.mkdir()
    (planted / "hf_xet.py").write_text(module)
    file = place.hub.repos["org/model"].commits[place.hub.commit("org/model")]["big.gguf"]
    path = os.pathsep.join([str(planted), str(Path(__file__).parent.parent)])
    words = [big.url, str(big.target), str(big.size), big.sha256, str(most)]
    source = str(place.source / "big.gguf")
    settings = {"PYTHONPATH": path, "XET_HASH": file.xet_hash, "XET_SOURCE": source, **more}
    done = subprocess.run(
        [sys.executable, "-c", XET_CLIENT, *words],
        env=place.hub.environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


@pytest.mark.parametrize("why", ["size", "refusal"])
def test_files_of_xet_are_handed_to_it_and_verified(place: Place, why: str) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.fault("xet", where="resolve", only=why == "refusal")
    assert by_xet(place, big, FAKE_XET, most=MIB - 1 if why == "size" else MIB) == ""
    assert place.is_there(big)
    assert place.names() == {"big.gguf"}
    assert not place.hub.asked("cdn")


def test_what_xet_brings_is_not_believed(place: Place) -> None:
    [big] = place.add(big_gguf=MIB, wrong_gguf=MIB)[:1]
    place.hub.fault("xet", where="resolve")
    said = by_xet(place, big, FAKE_XET, XET_SOURCE=str(place.source / "wrong.gguf"))
    assert "is not what it should be" in said
    assert not big.target.exists()


def test_a_missing_hf_xet_is_explained(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.fault("xet", where="resolve")
    said = by_xet(place, big, "raise ImportError")
    assert "big.gguf is given by Xet only" in said and "pip install hf_xet" in said


def test_a_forbidden_xet_is_explained(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    place.hub.fault("xet", where="resolve")
    assert "unset HF_HUB_DISABLE_XET" in by_xet(place, big, FAKE_XET, HF_HUB_DISABLE_XET="1")


def test_without_a_checksum_the_size_must_hold(place: Place) -> None:
    [big] = place.add(big_gguf=MIB)
    with pytest.raises(ModelError, match="is not what was expected"):
        place.fetch(without_sum(big, size=MIB // 2))
    place.fetch(without_sum(big))
    assert place.is_there(big)
