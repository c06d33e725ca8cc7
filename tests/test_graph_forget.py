"""`doit forget`: what becomes pending, at once and until it was made again."""

from __future__ import annotations

import shutil

import pytest
from graph import Project

MODEL_STEPS = {"convert", "quantize"}


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        ("vendor", {"build", "convert", "quantize"}),
        ("build", {"build"}),
        ("converter", {"converter", "convert", "quantize"}),
        ("convert", {"convert", "quantize"}),
        ("quantize", {"quantize"}),
        ("download", set()),
    ],
)
def test_step_and_everything_downstream_is_pending(
    copied: Project, step: str, expected: set[str]
) -> None:
    assert copied.pending("model=m") == set()
    copied.doit("forget", step, "model=m")
    assert copied.pending("model=m") == expected


@pytest.fixture
def copied(prepared: Project) -> Project:
    """A prepared project with a copy of the tools, whose records may be changed."""
    bins = prepared.folder / "bins"
    shutil.copytree(prepared.bins, bins, symlinks=True)
    return Project(prepared.folder, bins, prepared.tree)


def test_downstream_stays_pending_though_the_result_is_the_same(prepared: Project) -> None:
    before = prepared.gguf("f16").read_bytes()
    prepared.doit("forget", "convert", "model=m")
    why = prepared.why("model=m")
    assert (why["convert"], why["quantize"]) == ("forgotten", "after convert")
    prepared.doit("convert", "model=m")
    assert prepared.gguf("f16").read_bytes() == before
    why = prepared.why("model=m")
    assert (why["convert"], why["quantize"]) == ("", "forgotten")
    inode = prepared.gguf().stat().st_ino
    prepared.doit("prepare", "model=m")
    assert prepared.gguf().stat().st_ino != inode
    assert prepared.pending("model=m") == set()


def test_nothing_is_deleted(prepared: Project) -> None:
    before = prepared.files()
    prepared.doit("forget", "model=m")
    assert prepared.files() == before


def test_without_a_step_it_is_the_model_in_effect(prepared: Project) -> None:
    prepared.checkpoint("other")
    prepared.doit("prepare", "model=other")
    said = prepared.doit("forget", "model=m").splitlines()
    assert [line.split(":")[0] for line in said] == ["forgot convert", "forgot quantize"]
    assert prepared.pending("model=m") == MODEL_STEPS
    assert prepared.pending("model=other") == set()


def test_all_is_every_known_model(prepared: Project) -> None:
    prepared.checkpoint("other")
    prepared.doit("prepare", "model=other", "quantization=q8_0")
    rows = [row.split() for row in prepared.doit("list", "all=yes", "model=m").splitlines()[1:-1]]
    assert {name.split("__")[0] for name, *_ in rows if "__" in name} == {
        f"{step}:{model}"
        for step in ("download", "convert", "quantize")
        for model in ("m", "other")
    }
    assert {status for _, status, *_ in rows} == {"fresh"}
    prepared.doit("forget", "all=yes", "model=m")
    assert prepared.pending("model=m") == MODEL_STEPS
    assert prepared.pending("model=other", "quantization=q8_0") == MODEL_STEPS


def test_other_types_of_the_model_are_forgotten_too(prepared: Project) -> None:
    prepared.doit("prepare", "model=m", "quantization=q8_0")
    prepared.doit("forget", "convert", "model=m")
    for quantization in ("q4_k_m", "q8_0"):
        prepared.doit("convert", "model=m")
        assert prepared.pending("model=m", f"quantization={quantization}") == {"quantize"}


def test_named_model(prepared: Project) -> None:
    """`STEP:<id>` is that model's step, whichever model is in effect."""
    prepared.checkpoint("other")
    prepared.doit("prepare", "model=other")
    (name,) = [
        line.split()[0]
        for line in prepared.doit("list", "model=other").splitlines()
        if line.startswith("convert:")
    ]
    prepared.doit("forget", name, "model=m")
    assert prepared.pending("model=m") == set()
    assert prepared.pending("model=other") == MODEL_STEPS
    prepared.doit(name.replace("convert", "quantize"), "model=m")
    assert prepared.pending("model=other") == set()


def test_unknown_step_is_refused_with_the_nearest(ready: Project) -> None:
    said = ready.doit("forget", "quantise", "model=m", status=3)
    assert "'quantise' is not a step (did you mean 'quantize'?)" in said
    assert ready.pending("model=m") == set()


def test_forget_beside_a_running_server_is_not_undone(prepared: Project) -> None:
    server = prepared.start("serve", "model=m", "port=auto")
    server.wait_for("ready in ")
    assert prepared.pending("model=m") == set()
    prepared.doit("forget", "quantize", "model=m")
    assert prepared.pending("model=m") == {"quantize"}
    server.stop()
    assert prepared.pending("model=m") == {"quantize"}


def test_forgotten_step_that_is_removed_is_made_once(prepared: Project) -> None:
    prepared.doit("forget", "model=m")
    prepared.gguf().unlink()
    prepared.doit("prepare", "model=m")
    assert prepared.pending("model=m") == set()
