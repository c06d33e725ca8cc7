"""`.hub.json`: written once, read whatever state it is in."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from tasks.hub import manifest
from tasks.hub.fit import PREFERENCE
from tasks.hub.manifest import Choice, Manifest, RemoteFile, Request, choice_key
from tasks.layout import MANIFEST_NAME, Layout, hub_id
from tasks.settings import load

COMMIT = "0123456789abcdef" * 2 + "01234567"
FILES = (RemoteFile("q4/a-Q4_K_M.gguf", 7, "a" * 64), RemoteFile("config.json", 2, "", "b" * 40))
CHOICE = Choice("gguf", ("q4/a-Q4_K_M.gguf",), "Q4_K_M", why="it fits", when=5)
LISTED = Manifest("org/name", COMMIT, FILES, {"main": 5}, {"main": CHOICE})


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.of(ROOT, load({"models-dir": str(tmp_path)}, {}, tmp_path))


def path_of(layout: Layout) -> Path:
    return layout.gguf_folder(LISTED.id) / MANIFEST_NAME


def written(layout: Layout) -> Path:
    manifest.update(
        layout,
        LISTED,
        lambda one: dataclasses.replace(one, asked=LISTED.asked, choices=LISTED.choices),
    )
    return path_of(layout)


def test_what_is_written_is_read(layout: Layout) -> None:
    path = written(layout)
    assert path.parent.name == "org__name__0123456789ab"
    assert manifest.load(path) == LISTED
    assert manifest.known(layout, "org/name") == [LISTED]
    assert manifest.known(layout, "org/nam") == manifest.known(layout, "org/name__0123") == []
    assert list(manifest.everything(layout)) == [LISTED]


def test_a_second_choice_joins_the_first(layout: Layout) -> None:
    written(layout)
    other = dataclasses.replace(CHOICE, when=6)

    def add(one: Manifest) -> Manifest:
        return dataclasses.replace(one, choices={**one.choices, "v1": other})

    bare = dataclasses.replace(LISTED, asked={}, choices={})
    assert manifest.update(layout, bare, add).choices == {"main": CHOICE, "v1": other}
    assert manifest.load(path_of(layout)) == dataclasses.replace(
        LISTED, choices={"main": CHOICE, "v1": other}
    )


def damaged(change: str, value: Any) -> str:
    data = json.loads(json.dumps({"version": 1, **dataclasses.asdict(LISTED)}))
    where = data
    *parents, last = change.split(".")
    for key in parents:
        where = where[int(key) if key.isdigit() else key]
    where[int(last) if last.isdigit() else last] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        "null",
        damaged("version", 2),
        damaged("files", None),
        damaged("files.0", "a"),
        damaged("files.0.name", "../../evil.gguf"),
        damaged("files.0.name", "/etc/evil.gguf"),
        damaged("files.0.size", "7"),
        damaged("files.0.new", 1),
        damaged("choices.main.files", ["another.gguf"]),
        damaged("choices.main.files", []),
        damaged("choices.main.mmproj", "another.gguf"),
        damaged("choices.main.when", "yesterday"),
        damaged("asked.main", None),
    ],
)
def test_a_damaged_one_counts_as_none(text: str, layout: Layout) -> None:
    path = written(layout)
    path.write_text(text, encoding="utf-8")
    assert manifest.load(path) is None
    assert manifest.known(layout, "org/name") == []
    assert written(layout) == path
    assert manifest.load(path) == LISTED


def test_later_answers_win_whatever_the_clock_says() -> None:
    future = 1 << 62
    assert manifest.later_than([]) < future
    assert manifest.later_than([dataclasses.replace(LISTED, asked={"main": future})]) > future
    late = dataclasses.replace(CHOICE, when=future)
    assert manifest.later_than([dataclasses.replace(LISTED, choices={"x": late})]) > future


def test_requests_that_mean_the_same_have_one_key() -> None:
    assert choice_key("main", Request()) == "main"
    assert choice_key("main", Request("Q4_K_M")) == choice_key("main", Request("q4_k_m"))
    keys = {
        choice_key("main", Request("q4_k_m")),
        choice_key("main", Request(filename="q4_k_m")),
        choice_key("main", Request(), "draft"),
        choice_key("v1", Request()),
        choice_key("main", Request()),
    }
    assert len(keys) == 5


def test_ids_are_folder_names() -> None:
    assert hub_id("org/Name-1.5B_x", COMMIT) == "org__Name-1.5B_x__0123456789ab"
    address = hub_id("https://host/a/b%20c.gguf", "etag")
    assert address.startswith("b_c.gguf__")
    assert address != hub_id("https://host/b/b%20c.gguf", "etag")


def test_the_documented_order_is_the_one_that_is_used() -> None:
    text = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    assert ", ".join(f"`{name}`" for name in PREFERENCE) in " ".join(text.split())
