"""Commands, and that they end with us whatever ends us: real processes, real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from conftest import ROOT

from tasks import guard, process

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals")

# A child with a child of its own. Both say their pid; `{sleep}` is how they pass their time.
FAMILY = """
import os, signal, subprocess, sys, time
young = "import os, signal, time; {before}; print(os.getpid(), flush=True); {sleep}"
if sys.argv[1:] == ["old"]:
    subprocess.Popen([sys.executable, "-c", young], start_new_session={apart})
{before}
print(os.getpid(), flush=True)
{sleep}
"""

# Waits for the family in its main thread, or in a thread as doit's parallel runner does.
PARENT = """
import subprocess, sys, threading, time
from tasks import process

process.install_signal_handlers()
child = process.start([sys.executable, "-c", sys.argv[1], "old"])
if {healthy}:
    process.now_healthy()

def wait():
    status = process.finish(child)
    print("status", status, flush=True)
    try:
        process.start([sys.executable, "-c", ""])
    except process.Stopped:
        print("stopped", flush=True)

print("ready", flush=True)
if {thread}:
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.05)
else:
    wait()
print("went on", flush=True)
"""


def family(*, stubborn: bool = False, apart: bool = False) -> str:
    before = "signal.signal(signal.SIGTERM, signal.SIG_IGN)" if stubborn else "pass"
    return FAMILY.format(before=before, sleep="time.sleep(600)", apart=apart)


@contextmanager
def parent(
    family: str, *, healthy: bool = False, thread: bool = False
) -> Iterator[tuple[subprocess.Popen[str], list[int]]]:
    """A process with tasks.process in it, once its family of two is up, and their pids."""
    script = PARENT.format(healthy=healthy, thread=thread)
    child = subprocess.Popen(
        [sys.executable, "-c", script, family],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    pids: list[int] = []
    try:
        lines = [child.stdout.readline().strip() for _ in range(3)]
        assert lines.count("ready") == 1, lines
        pids = [int(line) for line in lines if line != "ready"]
        yield child, pids
    finally:
        for pid in (child.pid, *pids):
            if not ended(pid):
                os.kill(pid, signal.SIGKILL)
        child.stdout.close()
        child.wait()


def ended(pid: int) -> bool:
    """True where a process is gone; a zombie is, too: in a container nobody may collect it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_ended(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while not all(ended(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still running: {[p for p in pids if not ended(p)]}"
        time.sleep(0.02)


@posix
@pytest.mark.parametrize(
    ("healthy", "stubborn", "apart"),
    [(False, False, False), (False, True, True), (True, True, False)],
)
def test_no_child_or_grandchild_survives_sigkill(
    healthy: bool, stubborn: bool, apart: bool
) -> None:
    with parent(family(stubborn=stubborn, apart=apart), healthy=healthy) as (main, pids):
        main.kill()
        main.wait(60)
        wait_until_ended(pids)


@posix
@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_healthy_ends_all_with_130(number: signal.Signals, thread: bool) -> None:
    with parent(family(), thread=thread) as (main, pids):
        main.send_signal(number)
        assert main.wait(60) == process.INTERRUPTED == 130
        wait_until_ended(pids)


@posix
@pytest.mark.parametrize("apart", [False, True])
def test_a_family_that_ignores_sigterm_is_ended_too(apart: bool) -> None:
    with parent(family(stubborn=True, apart=apart)) as (main, pids):
        main.send_signal(signal.SIGTERM)
        assert main.wait(60) == 130
        wait_until_ended(pids)


@posix
@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_signal_when_healthy_ends_the_children_and_main_goes_on(
    thread: bool, stubborn: bool
) -> None:
    with parent(family(stubborn=stubborn), healthy=True, thread=thread) as (main, pids):
        main.send_signal(signal.SIGTERM)
        assert main.stdout
        expected = -signal.SIGKILL if stubborn else -signal.SIGTERM
        assert main.stdout.read().splitlines() == [f"status {int(expected)}", "stopped", "went on"]
        assert main.wait(60) == 0
        wait_until_ended(pids)


@posix
def test_a_second_signal_does_not_wait() -> None:
    with parent(family(stubborn=True), healthy=True) as (main, pids):
        # Two different ones: equal signals that wait are merged into one.
        main.send_signal(signal.SIGTERM)
        main.send_signal(signal.SIGINT)
        assert main.wait(60) == 0
        wait_until_ended(pids)


@posix
def test_a_process_that_ends_leaves_no_child() -> None:
    script = PARENT.format(healthy=False, thread=False).split("\ndef wait")[0] + "\nsys.exit(5)"
    done = subprocess.run(
        [sys.executable, "-c", script, family()],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 5
    wait_until_ended([int(line) for line in done.stdout.split()])


@posix
def test_nohup_stays_in_force() -> None:
    script = """
        import signal
        from tasks import process
        process.install_signal_handlers()
        print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)
    """
    for ignored in (True, False):
        argv = [sys.executable, "-c", textwrap.dedent(script)]
        done = subprocess.run(
            ["nohup", *argv] if ignored else argv,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == str(ignored)


def test_a_mark_within_another_is_found_by_both() -> None:
    outer, inner = "0123outer", "4567inner"
    child = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(600)"],
        env={**os.environ, guard.MARK_VARIABLE: outer + inner},
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout
        assert child.stdout.readline() == b"up\n"
        assert guard.kill_marked("another") == 0
        assert child.poll() is None
        assert guard.kill_marked(outer) == 1
        assert child.wait() != 0


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def test_run_logs_all_output_and_hands_over_each_line(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "x.log"
    lines: list[str] = []
    code = """
        import os, sys
        sys.stdout.buffer.write(b"one\\r\\ntwo 50%\\rtwo 100%\\n\\n\\xff end")
        sys.stdout.flush()
        os.write(2, b"\\n" + os.environ["WORD"].encode() + b" in " + os.getcwd().encode())
    """
    process.run(python(code), log=log, env={"WORD": "here"}, cwd=tmp_path, on_line=lines.append)
    assert lines == ["one", "two 50%", "two 100%", "\ufffd end", f"here in {tmp_path}"]
    first, rest = log.read_bytes().split(b"\n", 1)
    assert first.startswith(b"+ ")
    assert b"one\r\ntwo 50%\rtwo 100%\n\n\xff end\nhere in " in rest


def test_run_appends_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    for number in (1, 2):
        process.run(python(f"print('run {number}')"), log=log)
    assert [line for line in log.read_text().splitlines() if line.startswith("run")] == [
        "run 1",
        "run 2",
    ]


def test_a_command_that_fails_has_its_last_lines(tmp_path: Path) -> None:
    code = "for n in range(100): print(n)\nraise SystemExit(7)"
    with pytest.raises(process.CommandFailed, match="ended with exit code 7") as failed:
        process.run(python(code), log=tmp_path / "x.log")
    assert failed.value.status == 7
    assert failed.value.tail == [str(number) for number in range(60, 100)]


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        process.run([str(tmp_path / "none")], log=tmp_path / "x.log")


@posix
def test_a_command_that_is_killed(tmp_path: Path) -> None:
    with pytest.raises(process.CommandFailed, match="was killed by SIGSEGV"):
        process.run(["sh", "-c", "kill -SEGV $$"], log=tmp_path / "x.log")


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (2, "ended with exit code 2"),
        (-9, "was killed by SIGKILL"),
        (-4, "was killed by SIGILL"),
        (-200, "was killed by signal 200"),
    ],
)
@posix
def test_an_exit_status_in_words(status: int, words: str) -> None:
    assert process.describe_status(status) == words


@posix
def test_run_leaves_no_command_behind_that_nobody_reads(tmp_path: Path) -> None:
    pids: list[int] = []

    def refuse(line: str) -> None:
        pids.append(int(line))
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        process.run(
            python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"),
            log=tmp_path / "x.log",
            on_line=refuse,
        )
    assert ended(pids[0])


@posix
def test_terminate_ends_what_the_child_left(tmp_path: Path) -> None:
    child = process.start([*python(family()), "old"], stdout=subprocess.PIPE)
    with child:
        assert child.stdout
        pids = [int(child.stdout.readline()) for _ in range(2)]
        process.terminate(child)
    assert child.returncode == -signal.SIGTERM
    wait_until_ended(pids)


def test_capture_and_can_run(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['WORD'], flush=True); print('e', file=sys.stderr)"
    assert (process.capture(python(code), env={"WORD": "w"}) or "").split() == ["w", "e"]
    assert process.capture(python("raise SystemExit(1)")) is None
    assert process.capture([str(tmp_path / "none")]) is None
    assert process.can_run(python("raise SystemExit(1)"))
    assert not process.can_run([str(tmp_path / "none")])


@posix
def test_a_program_that_crashes_cannot_run() -> None:
    assert not process.can_run(["sh", "-c", "kill -ILL $$"])
