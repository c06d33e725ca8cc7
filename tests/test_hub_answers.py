"""What the hub may answer instead of a listing: rubbish, errors, nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hub_user import (
    CONTENT,
    OPEN,
    TimedHub,
    User,
    host,
    hub,
    nobody,
    source,
    user,
)
from huggingface_hub.utils._http import close_session

from tasks.errors import ModelError
from tasks.hub import api as client

__all__ = ["hub", "nobody", "source", "user"]

MODEL = f"model={OPEN}"
COMMIT = f'"sha": "{"a" * 40}"'


Ask = Callable[[], tuple[str, str]]


@pytest.fixture
def ask(user: User, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """Ask for a listing in this process: what happened, and why."""
    for name, value in user.env.items():
        monkeypatch.setenv(name, value)

    def fails() -> tuple[str, str]:
        with pytest.raises(ModelError) as caught:
            client.list_repository(OPEN, "main")
        return caught.value.what, caught.value.why

    close_session()
    yield fails
    close_session()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"id": "org/na', "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        (" <html>please log in</html>", "it is a web page"),
        ("[]", "it names no commit"),
        ('{"sha": "HEAD", "siblings": []}', "it names no commit"),
        ('{"sha": 5, "siblings": []}', "it names no commit"),
        (f'{{{COMMIT}, "siblings": null}}', "it lists no files"),
        (f'{{{COMMIT}, "siblings": [7]}}', "it lists a file without a name"),
        (f'{{{COMMIT}, "siblings": [{{"rfilename": []}}]}}', "it lists a file without a name"),
    ],
)
def test_rubbish_is_called_so(ask: Ask, hub: TimedHub, text: str, why: str) -> None:
    broken = hub.fault("garbage", where="api", text=text)
    assert ask() == (f"{host(hub.endpoint)} gave an answer about {OPEN} that is none", why)
    assert broken.hits == 1


def test_a_page_where_one_must_log_in(user: User, hub: TimedHub) -> None:
    hub.fault("garbage", where="api", text="<html>")
    said = user.refused("prepare", MODEL)
    assert f"ERROR: {host(hub.endpoint)} gave an answer about {OPEN} that is none" in said
    assert f"gave an answer about {OPEN} that is none: it is a web page" in user.doit("list", MODEL)


def every_file(**changes: Any) -> Callable[[Any], Any]:
    """Changes to what a listing says of each file."""

    def edit(answer: Any) -> Any:
        for entry in answer["siblings"]:
            entry.update(changes)
        return answer

    return edit


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"size": "12", "lfs": None}, "with a size of '12'"),
        ({"size": -1, "lfs": None}, "with a size of -1"),
        ({"size": True, "lfs": None}, "with a size of True"),
        ({"blobId": "main", "lfs": None}, "with a checksum that is none"),
        ({"lfs": {"sha256": "../../x", "size": 3}}, "with a checksum that is none"),
        ({"lfs": {"sha256": 5, "size": 3}}, "with a checksum that is none"),
        ({"lfs": "yes"}, "that can be understood"),
    ],
)
def test_wrong_types_are_no_listing(
    ask: Ask, hub: TimedHub, changes: dict[str, Any], why: str
) -> None:
    hub.fault("edit", where="api", by=every_file(**changes))
    what, said = ask()
    assert what.endswith(f"gave an answer about {OPEN} that is none")
    assert why in said


def test_an_endless_listing_is_not_read_to_its_end(ask: Ask, hub: TimedHub) -> None:
    hub.fault("giant", where="api", size=4 * client._MOST_LISTING_BYTES)
    assert ask()[1] == "it is larger than 64 MiB"
    # What is on its way in sockets counts as sent.
    assert hub.requests[0].sent < 2 * client._MOST_LISTING_BYTES


# --- errors


def test_a_busy_hub_is_asked_again_when_it_said_so(user: User, hub: TimedHub) -> None:
    hub.fault("status", where="api", code=429, retry_after=2, times=1)
    hub.fault("status", where="api", code=503, times=1)
    said = user.doit("download", MODEL)
    assert f"{host(hub.endpoint)} answers 429: waiting 2.0 s, as it asks" in said
    assert [record.status for record in hub.asked("api")] == [429, 503, 200]
    assert hub.times[1] - hub.times[0] >= 2
    assert user.found().read_bytes() == CONTENT


def test_who_is_told_to_come_back_in_hours_does_not_wait(user: User, hub: TimedHub) -> None:
    busy = hub.fault("status", where="api", code=429, retry_after=7200)
    said = user.refused("prepare", MODEL)
    assert f"{host(hub.endpoint)} wants fewer requests" in said
    assert "asks to wait 120 min" in said
    assert "HF_TOKEN" in said
    assert busy.hits == 1


def test_a_broken_hub_is_given_up(user: User, hub: TimedHub) -> None:
    broken = hub.fault("status", where="api", code=500)
    said = user.refused("prepare", MODEL)
    assert f"{host(hub.endpoint)} does not give {OPEN}" in said
    assert "answers 500 Internal Server Error" in said
    assert broken.hits == client.TRIES
    assert "unresolved" in user.doit("list", MODEL)
    assert broken.hits == client.TRIES + 1


# --- nothing


@pytest.mark.parametrize("where", ["api", "resolve"])
def test_a_silent_hub_is_given_up(user: User, hub: TimedHub, where: str) -> None:
    silent = hub.fault("stall", where=where)
    said = user.refused("prepare", MODEL, HF_HUB_ETAG_TIMEOUT="2")
    assert f"{host(hub.endpoint)} cannot be reached" in said
    assert "timed out" in said
    assert silent.hits == 2


def test_list_asks_a_silent_hub_once(user: User, hub: TimedHub) -> None:
    silent = hub.fault("stall")
    rows = user.doit("list", MODEL, env={"HF_HUB_ETAG_TIMEOUT": "1"})
    assert "unresolved" in rows
    assert "timed out" in rows
    assert silent.hits == 1


def test_a_listing_that_stops_in_its_middle(user: User, hub: TimedHub) -> None:
    for kind in ("drop", "truncate"):
        hub.fault(kind, where="api", after=20, times=1)
    user.downloads()
    assert len(hub.asked("api")) == 3


def test_a_hub_that_is_down(user: User, nobody: str) -> None:
    env = {"HF_ENDPOINT": f"http://{nobody}"}
    rows = user.doit("list", MODEL, env=env)
    assert "unresolved" in rows
    assert "refused" in rows
