"""What a run shows, and what doit is told of its database: the real doit on a small graph."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from conftest import doit

HEAD = """
from doit.exceptions import TaskFailed
from tasks.backend import RecordedChecker
from tasks.errors import ModelError, PortInUse
from tasks.step import Step, action

DOIT_CONFIG = {"backend": "records", "check_file_uptodate": RecordedChecker, "verbosity": 2}


class PLAN:
    check_serve = staticmethod(lambda: None)
    notes = []


def fail(error):
    raise error
"""


def run(folder: Path, body: str, *words: str, status: int = 0) -> str:
    dodo = folder / "dodo.py"
    dodo.write_text(HEAD + textwrap.dedent(body))
    return doit(*words, dodo=dodo, status=status)


def test_a_step_says_when_it_starts_and_ends_and_others_say_nothing(tmp_path: Path) -> None:
    body = """
    def task_quiet():
        return {"actions": [lambda: None]}

    def task_loud():
        step = Step("loud", "make a noise")
        return {"actions": [lambda: print("noise")], "doc": step.title, "meta": {"step": step}}

    def task_skipped():
        return {"actions": [], "uptodate": [True], "meta": {"step": Step("s", "", skip="no need")}}
    """
    lines = run(tmp_path, body, "quiet", "loud", "skipped").splitlines()
    assert lines[:2] == ["loud        make a noise", "noise"]
    assert lines[2].startswith("loud        done in ")
    assert lines[3:] == ["skipped     no need"]


def test_the_exit_code_is_that_of_the_failure(tmp_path: Path) -> None:
    body = """
    def task_bad():
        broke = ModelError("it broke", "age", "mend it")
        return {"actions": [action(lambda: fail(broke), "model")]}

    def task_after():
        return {"actions": [lambda: print("never")], "task_dep": ["bad"]}
    """
    lines = run(tmp_path, body, "after", status=14).splitlines()
    assert lines == ["ERROR: bad: it broke", "  why: age", "  fix: mend it"]


def test_the_first_failure_decides(tmp_path: Path) -> None:
    body = """
    def task_a():
        return {"actions": [action(lambda: fail(PortInUse("first")), "port")]}

    def task_b():
        return {"actions": [action(lambda: fail(ModelError("second")), "model")]}
    """
    assert run(tmp_path, body, "-c", "a", "b", status=16).splitlines() == [
        "ERROR: a: first",
        "ERROR: b: second",
    ]


def test_a_failure_without_a_code_of_ours_keeps_doits(tmp_path: Path) -> None:
    body = """
    def task_a():
        return {"actions": [lambda: TaskFailed("plain")]}
    """
    assert "ERROR: a: plain" in run(tmp_path, body, "a", status=1)


def test_nothing_is_remembered(tmp_path: Path) -> None:
    body = """
    def task_a():
        return {"actions": [lambda: print("ran")], "uptodate": [lambda: False]}
    """
    for _ in range(2):
        assert "ran" in run(tmp_path, body, "a")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["dodo.py"]


@pytest.mark.parametrize("uptodate", [True, False])
def test_only_a_steps_own_check_decides(uptodate: bool, tmp_path: Path) -> None:
    body = f"""
    def task_a():
        return {{
            "actions": [lambda: print("ran")],
            "file_dep": [__file__],
            "uptodate": [lambda: {uptodate}],
        }}
    """
    assert ("ran" in run(tmp_path, body, "a")) is not uptodate


def test_why_the_model_was_chosen_is_said_before_anything_runs(tmp_path: Path) -> None:
    body = """
    PLAN.notes = ["Q5_K_M: 5.7 GB + 1.1 GB context fits 11.2 GB; Q6_K would not"]

    def task_download():
        return Step("download", "download it", skip="it is here").task()
    """
    assert run(tmp_path, body, "download").splitlines() == [
        "model       Q5_K_M: 5.7 GB + 1.1 GB context fits 11.2 GB; Q6_K would not",
        "download    it is here",
    ]
    body = body.replace("download", "build")
    assert run(tmp_path, body, "build").splitlines() == ["build       it is here"]
