"""Console: whole lines, whatever reads them and whatever they hold."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from conftest import ROOT

from tasks import console


def python(code: str, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_a_reader_that_went_away_is_no_error() -> None:
    child = python(
        "import sys; from tasks import console; console.line('one'); sys.stdin.readline();"
        "[console.line('x' * 1000) for _ in range(1000)]; print('y' * 100); sys.exit(5)"
    )
    assert child.stdin and child.stdout and child.stderr
    assert child.stdout.readline() == b"one\n"
    child.stdout.close()
    child.stdin.write(b"\n")
    child.stdin.close()
    assert child.stderr.read() == b""
    assert child.wait() == 5
    child.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_ends_nothing() -> None:
    code = "from tasks import console; console.line('a'); console.line('b'); raise SystemExit(5)"
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert (done.returncode, done.stderr) == (5, b"")


def test_characters_that_the_terminal_lacks_silence_nothing() -> None:
    child = python(
        "from tasks import console; console.line('q4 \u2192 q8'); console.line('after')",
        PYTHONIOENCODING="ascii",
    )
    out, error = child.communicate()
    assert out.split() == [b"q4", rb"\u2192", b"q8", b"after"]
    assert error == b""


def test_lines_of_threads_do_not_mix(capfd: pytest.CaptureFixture[str]) -> None:
    def work(letter: str) -> None:
        for _ in range(200):
            console.line(letter * 50)

    threads = [threading.Thread(target=work, args=[letter]) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capfd.readouterr().out.splitlines()
    assert sorted(lines) == sorted(letter * 50 for letter in "abcd" for _ in range(200))


def test_progress_is_shown_at_most_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(100):
        console.progress("test-progress", f"{number}%")
        console.progress("test-other", f"{number}%")
    assert capsys.readouterr().out.splitlines() == ["test-progress  0%", "test-other  0%"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.04 s"),
        (1.23, "1.2 s"),
        (9.94, "9.9 s"),
        (17.2, "17 s"),
        (60, "1 min 0 s"),
        (511.9, "8 min 31 s"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert console.duration(seconds) == words
