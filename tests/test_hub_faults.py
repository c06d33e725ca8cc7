"""The faults that tests switch on at their hub are those that they name, and no others."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hub import DEADLINE_S, Hub
from hub_sample import CONTENT, GGUF, REPO, api, folder, get, hub, no_proxy, url_of
from huggingface_hub import (
    HfApi,
    get_hf_file_metadata,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import http_backoff
from huggingface_hub.utils._xet import refresh_xet_connection_info

__all__ = ["api", "folder", "hub", "no_proxy"]


def location(hub: Hub) -> str:
    """A signed URL of the large file."""
    return get_hf_file_metadata(url_of(hub), token=False).location


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_status_for_so_many_times(hub: Hub, code: int) -> None:
    fault = hub.fault("status", code=code, where="cdn", name="*.gguf", times=2)
    url = url_of(hub)
    assert [get(url).status_code for _ in range(3)] == [code, code, 200]
    assert fault.hits == 2
    assert hub.bytes_sent == len(CONTENT)


def test_retry_after_in_seconds_and_as_a_date(hub: Hub) -> None:
    hub.fault("status", code=429, retry_after=7, times=1)
    assert get(url_of(hub)).headers["Retry-After"] == "7"
    hub.fault("status", code=503, retry_after=datetime(2030, 1, 2, tzinfo=timezone.utc), times=1)
    assert get(url_of(hub)).headers["Retry-After"] == "Wed, 02 Jan 2030 00:00:00 GMT"


def test_the_client_waits_and_asks_again(hub: Hub) -> None:
    fault = hub.fault("status", code=429, retry_after=0, where="api", name="org/*", times=1)
    answer = http_backoff("GET", f"{hub.endpoint}/api/models/{REPO}")
    assert (answer.status_code, fault.hits) == (200, 1)
    assert [record.status for record in hub.requests] == [429, 200]


@pytest.mark.parametrize("kind", ["drop", "truncate", "stall"])
def test_a_fault_hits_only_what_it_names(hub: Hub, folder: Path, kind: str) -> None:
    plain = hub.file(folder / "config.json")
    faults = [
        hub.fault(kind, after=10, where="cdn", name="other.gguf"),
        hub.fault(kind, after=len(CONTENT), where="cdn"),
        hub.fault(kind, after=3, where="api"),
        hub.fault(kind, after=3, method="POST"),
        hub.fault(kind, after=3, where="plain", times=0),
    ]
    assert get(url_of(hub)).content == CONTENT
    assert get(plain).text == '{"a": 1}'
    assert [fault.hits for fault in faults] == [0] * 5


def received(url: str) -> tuple[int, type[Exception] | None]:
    """How many bytes of a body came, and what ended it."""
    count = 0
    try:
        with httpx2.stream("GET", url, trust_env=False) as answer:
            for chunk in answer.iter_raw():
                count += len(chunk)
    except httpx2.TransportError as error:
        return count, type(error)
    return count, None


def test_a_dropped_and_a_truncated_body(hub: Hub) -> None:
    url = location(hub)
    hub.fault("truncate", after=50_000, times=1)
    assert received(url) == (50_000, httpx2.RemoteProtocolError)
    hub.fault("drop", after=50_000, times=1)
    count, error = received(url)
    assert count <= 50_000
    assert error is httpx2.ReadError
    assert [record.sent for record in hub.asked("cdn")] == [50_000, 50_000]
    assert received(url) == (len(CONTENT), None)


def test_a_flipped_byte(hub: Hub) -> None:
    fault = hub.fault("flip", at=70_000, times=1)
    url = location(hub)
    assert get(url, "0-69999").content == CONTENT[:70_000]
    assert fault.hits == 0
    bad = get(url, "60000-").content
    wrong = [at for at, byte in enumerate(bad, 60_000) if byte != CONTENT[at]]
    assert (wrong, fault.hits) == ([70_000], 1)
    assert get(url).content == CONTENT


def test_wrong_sizes(hub: Hub, api: HfApi) -> None:
    hub.fault("size", to=5, where="api", name="*.gguf")
    sizes = {s.rfilename: s.size for s in api.model_info(REPO, files_metadata=True).siblings or []}
    assert (sizes[GGUF], sizes["config.json"]) == (5, 8)
    assert [e.size for e in api.get_paths_info(REPO, GGUF) if isinstance(e, RepoFile)] == [5]
    hub.fault("size", to=6, where="resolve")
    assert get_hf_file_metadata(url_of(hub), token=False).size == 6
    hub.fault("size", to=7, where="cdn")
    assert get(url_of(hub), "0-3").headers["Content-Range"] == "bytes 0-3/7"


def test_ranges_refused_ignored_and_shifted(hub: Hub) -> None:
    fault = hub.fault("no-range", beyond=100, where="cdn")
    assert get(url_of(hub), "0-9").content == CONTENT[:10]
    whole = get(url_of(hub), "100-109")
    assert (whole.status_code, whole.content) == (200, CONTENT)
    fault.clear()
    hub.fault("shift", times=1)
    wrong = get(url_of(hub), "5-9")
    assert (wrong.status_code, wrong.content) == (206, CONTENT[:5])
    assert wrong.headers["Content-Range"].startswith("bytes 0-4/")
    assert get(url_of(hub), "5-9").content == CONTENT[5:10]


@pytest.mark.parametrize("options", [{}, {"after": 1000}])
def test_a_stall_lasts_until_it_is_released(hub: Hub, options: dict[str, Any]) -> None:
    fault = hub.fault("stall", where="cdn", **options)
    url = location(hub)
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(get, url) for _ in range(3)]
        hub.wait(lambda: fault.hits == 3, "three stalled answers")
        sent = 3 * options.get("after", 0)
        hub.wait(lambda: hub.bytes_sent == sent, "their beginnings")
        assert not any(answer.done() for answer in answers)
        fault.release()
        assert all(answer.result(DEADLINE_S).content == CONTENT for answer in answers)
    assert (hub.most_at_once("cdn"), hub.most_at_once("api")) == (3, 0)
    assert hub.most_connections >= 3


def test_leaving_ends_what_stalls_and_what_creeps(folder: Path) -> None:
    with ThreadPoolExecutor() as pool:
        with Hub() as hub:
            hub.add(REPO, folder)
            slow = hub.fault("rate", bytes_per_s=1000, where="cdn")
            stalled = hub.fault("stall", where="plain")
            urls = [location(hub), hub.file(folder / GGUF)]
            answers = [pool.submit(received, url) for url in urls]
            hub.wait(lambda: bool(slow.hits and stalled.hits), "two answers that take long")
            assert hub.bytes_sent < len(CONTENT)
        assert all(answer.result(DEADLINE_S)[1] for answer in answers)


def test_a_slow_answer_is_a_whole_one(hub: Hub) -> None:
    fault = hub.fault("slow", seconds=0.01)
    assert get(url_of(hub)).content == CONTENT
    assert fault.hits == 2


def test_signed_urls_expire_until_resolved_again(hub: Hub) -> None:
    old = location(hub)
    hub.fault("expire", where="cdn", times=1)
    assert [get(old).status_code for _ in range(2)] == [403, 403]
    assert [record.status for record in hub.asked("cdn", "*.gguf")] == [403, 403]
    new = location(hub)
    assert get(new).content == CONTENT
    hub.expire_urls("other.gguf")
    assert get(new).status_code == 200
    hub.expire_urls("*.gguf")
    assert get(new).status_code == 403


def test_what_only_xet_can_download(hub: Hub, api: HfApi) -> None:
    hub.fault("xet", name="*.gguf")
    found = get_hf_file_metadata(url_of(hub), token=False, endpoint=hub.endpoint).xet_file_data
    assert found
    entries = {e.path: e for e in api.list_repo_tree(REPO, recursive=True)}
    assert getattr(entries[GGUF], "xet_hash", None) == found.file_hash
    assert getattr(entries["config.json"], "xet_hash", None) is None
    answer = get(url_of(hub))
    assert (answer.status_code, answer.headers["X-Xet-Hash"]) == (403, found.file_hash)
    connection = refresh_xet_connection_info(file_data=found, headers={})
    assert connection.endpoint == hub.cdn_endpoint


def test_the_real_xet_client_gets_it(hub: Hub, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    content = os.urandom(20_000_001)
    (big / "a.gguf").write_bytes(content)
    hub.add("org/big", big)
    hub.fault("xet")
    code = "from huggingface_hub import *; print(hf_hub_download('org/big', 'a.gguf'))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert Path(done.stdout.strip()).read_bytes() == content, done.stderr
    assert hub.asked("cdn") == []
    assert len(content) < hub.bytes_sent < len(content) + 10_000
    assert any("hf_xet/" in record.agent for record in hub.asked("xet", "a.gguf"))


def test_a_file_of_xet_that_http_can_download_too(hub: Hub) -> None:
    hub.fault("xet", only=False)
    metadata = get_hf_file_metadata(url_of(hub), token=False)
    assert metadata.xet_file_data
    assert get(url_of(hub)).content == CONTENT


def test_answers_that_are_not_what_they_should_be(hub: Hub, api: HfApi) -> None:
    link = {"rfilename": "link.gguf", "type": "symlink"}
    hub.fault("edit", by=lambda info: {**info, "siblings": [link]}, times=1)
    assert [s.rfilename for s in api.model_info(REPO).siblings or []] == ["link.gguf"]
    hub.fault("garbage", text="<html>", times=1)
    with pytest.raises(ValueError):
        api.model_info(REPO)
    hub.fault("giant", size=5_000_000, times=1)
    assert api.model_info(REPO).sha == hub.commit(REPO)
    assert hub.requests[-1].sent > 5_000_000
    assert hub.bytes_sent == 0


def test_errors_of_the_stand_in_are_not_swallowed(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), Hub() as hub:
        hub.add(REPO, folder)
        hub.fault("edit", by=lambda _: 1 / 0)
        assert received(f"{hub.endpoint}/api/models/{REPO}")[1]
