"""State: nothing is lost by two writers, a kill or damage, and it reads back as written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from tasks import state
from tasks.files import FileSum
from tasks.state import Record, State

SUM = FileSum("ab" * 32, 7, 123456789, 42)
RECORD = Record(
    made="2026-01-01T00:00:00+00:00",
    seconds=1.5,
    parameters={"quantization": "q8_0", "flags": ["-a"]},
    inputs={"in/ü.json": SUM},
    outputs={"out": SUM},
    tool={"version": 1},
)


def test_records_read_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / ".state.json"
    state.put(path, "convert", RECORD, {"type": "safetensors", "revision": None})
    state.put(path, "quantize", RECORD, {})
    assert state.load(path) == State(
        {"type": "safetensors", "revision": None}, {"convert": RECORD, "quantize": RECORD}
    )
    assert json.loads(path.read_text())["version"] == 1


def test_revise_changes_what_is_there_and_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    state.put(path, "a", RECORD, {})
    state.revise(path, "a", forgotten=True)
    state.revise(path, "b", forgotten=True)
    found = state.load(path).records
    assert list(found) == ["a"]
    assert found["a"].forgotten
    assert found["a"].outputs == {"out": SUM}


def test_no_file_is_an_empty_state(tmp_path: Path) -> None:
    assert state.load(tmp_path / ".state.json") == State()


def test_an_empty_state_is_not_damaged(tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    state.revise(path, "a", removed=True)
    state.put(path, "a", RECORD, {})
    assert not list(tmp_path.glob("*.damaged"))


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"version": 1}',
    '{"version": 2, "source": {}, "steps": {}}',
    '{"version": 1, "source": {}, "steps": {"a": 5}}',
    '{"version": 1, "source": {}, "steps": {"a": {"inputs": {}, "outputs": {}}}}',
    '{"version": 1, "source": 5, "steps": {}}',
    "[" * 100_000,
]


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_is_kept_aside(text: str, tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    path.write_text(text)
    assert state.load(path) == State()
    state.put(path, "a", RECORD, {})
    assert list(state.load(path).records) == ["a"]
    assert (tmp_path / ".state.json.damaged").read_text() == text


def test_bytes_that_are_no_text_are_damage(tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    path.write_bytes(b"\xff\xfe\0")
    assert state.load(path) == State()


WRITER = """
import sys
from pathlib import Path
from tasks import state
record = state.Record("now", 0.0, {}, {}, {})
print("up", flush=True)
sys.stdin.readline()
for number in range(200):
    state.put(Path(sys.argv[1]), f"{sys.argv[2]}{number}", record, {})
"""


def test_two_processes_that_write_200_times_each_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == b"up\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    # A reader in between sees a whole file each time.
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            assert json.loads(path.read_text())["version"] == 1
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        assert writer.stdin and writer.stdout
        writer.stdin.close()
        writer.stdout.close()
    assert set(state.load(path).records) == {f"{n}{i}" for n in "ab" for i in range(200)}
    assert not list(tmp_path.glob("*.damaged"))
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere"
)
def test_stats_of_a_folder_that_cannot_be_written_are_let_go(tmp_path: Path) -> None:
    path = tmp_path / ".state.json"
    state.put(path, "a", RECORD, {})
    tmp_path.chmod(0o555)
    state.remember_stats(path, "a", {}, {})
    assert state.load(path).records["a"] == RECORD
