"""./doitw in real copies of the checkout: real installs, real kills, real Pythons."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tasks.bootstrap import explain
from tasks.environment import REFUSED
from tasks.launch import doit_words

ROOT = Path(__file__).resolve().parent.parent
POSIX = pytest.mark.skipif(os.name == "nt", reason="doitw is for POSIX; Windows has doitw.cmd")

DODO = """
import os
import doit
DOIT_CONFIG = {"default_tasks": ["hello"], "backend": "records", "verbosity": 2}
def hello():
    print("hello", doit.get_var("x"), "from", doit.get_initial_workdir(), "as", os.getpid())
    print("root", os.path.dirname(__import__("tasks").__file__))
def task_hello():
    return {"actions": [hello], "doc": "the real dodo"}
def task_fail():
    return {"actions": ["exit 1"]}
"""
# The copy has doit's own commands: this is about who is started where, not about llamake's tasks.
STAND_INS = {
    "commands/run": "from doit.cmd_run import Run",
    "commands/list": "from doit.cmd_list import List",
    "commands/forget": "from doit.cmd_forget import Forget",
    "commands/help": "from doit.cmd_help import Help",
    "commands/settings": "from doit.cmd_info import Info as SettingsCommand",
    "backend": "from doit.dependency import JsonDB as NoDatabase",
}


def copy_checkout(to: Path) -> Path:
    """A checkout with the real bootstrap files, and tiny tasks and commands."""
    (to / "tasks/commands").mkdir(parents=True)
    (to / "requirements").mkdir()
    for name in (
        "doitw",
        "pyproject.toml",
        "requirements/llamake.txt",
        "tasks/__init__.py",
        "tasks/bootstrap.py",
        "tasks/environment.py",
        "tasks/launch.py",
    ):
        shutil.copy2(ROOT / name, to / name)
    for package in (ROOT / "tasks").glob("*/__init__.py"):
        (to / package.parent.relative_to(ROOT)).mkdir(exist_ok=True)
        (to / package.relative_to(ROOT)).touch()
    for name, text in STAND_INS.items():
        (to / f"tasks/{name}.py").write_text(text + "\n", encoding="utf-8")
    (to / "dodo.py").write_text(DODO, encoding="utf-8")
    return to


def environment(**more: str) -> dict[str, str]:
    """The user's environment, less what the test run itself put there."""
    removed = ("VIRTUAL_ENV", "PYTHONPATH", "DOIT_FILE")
    return {**{k: v for k, v in os.environ.items() if k not in removed}, **more}


def doitw(
    checkout: Path,
    *words: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    start: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run ./doitw; `start` is a shell to start it with, or the path to start it by."""
    program = list(start) or [str(checkout / "doitw")]
    return subprocess.run(
        [*program, *words],
        cwd=cwd or checkout,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )


def log_of(checkout: Path) -> Path:
    return checkout / "logs/bootstrap.log"


OFFLINE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_NO_CACHE_DIR": "1",
    "PIP_RETRIES": "1",
}


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    checkout = copy_checkout(tmp_path_factory.mktemp("first run") / "a ché'ckout")
    done = doitw(checkout, "x=1")
    done.args = checkout
    return done


@pytest.fixture
def made(first: subprocess.CompletedProcess[str]) -> Iterator[Path]:
    """A checkout whose environment is finished; tests leave it so."""
    assert first.returncode == 0, first.stderr
    yield Path(str(first.args))


# --- first run, warm runs -------------------------------------------------------------------


@POSIX
def test_first_run_says_one_line_and_runs_the_task(
    first: subprocess.CompletedProcess[str],
) -> None:
    assert first.returncode == 0, first.stderr
    assert first.stderr == "llamake: first run, installing into .venv …\n"
    assert f"hello 1 from {first.args} as " in first.stdout
    assert f"root {first.args}/tasks" in first.stdout


@POSIX
def test_warm_run_is_silent_installs_nothing_and_becomes_python(made: Path) -> None:
    before = log_of(made).stat().st_mtime_ns
    process = subprocess.Popen(
        [made / "doitw"], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    stdout, stderr = process.communicate(timeout=60)
    assert f"as {process.pid}\n".encode() in stdout
    assert stderr == b""
    assert log_of(made).stat().st_mtime_ns == before


@POSIX
@pytest.mark.parametrize("shell", ["sh", "dash", "bash", "busybox sh"])
def test_works_in_every_shell(made: Path, shell: str) -> None:
    program = shell.split()
    if not shutil.which(program[0]):
        pytest.skip(f"no {program[0]} here")
    done = doitw(made, "x=a b", start=(*program, "doitw"))
    assert "hello a b from" in done.stdout, done.stderr


@POSIX
def test_works_from_anywhere_and_through_links(made: Path, tmp_path: Path) -> None:
    user = tmp_path / "where the user stands"
    (user / "bin").mkdir(parents=True)
    (user / "bin/absolute").symlink_to(made / "doitw")
    (user / "relative").symlink_to("bin/absolute")
    (user / "folder").symlink_to(made)
    for start in (str(made / "doitw"), str(user / "bin/absolute"), "./relative", "folder/doitw"):
        done = doitw(made, cwd=user, start=(start,))
        assert f"from {user} as" in done.stdout, (start, done.stderr)
    on_path = doitw(
        made, cwd=user, start=("relative",), env=environment(PATH=f"{user}:{os.environ['PATH']}")
    )
    assert f"from {user} as" in on_path.stdout, on_path.stderr


@POSIX
def test_picks_up_nothing_of_the_folder_it_is_called_from(made: Path, tmp_path: Path) -> None:
    stranger = "raise SystemExit('picked up a stranger')\n"
    for name in ("dodo.py", "doit.py", "subprocess.py", "tasks/__init__.py", "venv/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(stranger, encoding="utf-8")
    (tmp_path / "doit.cfg").write_text("[COMMAND]\nlist = stranger:List\n", encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.doit]\nverbosity = 0\ndefault_tasks = ["none"]\n', encoding="utf-8"
    )
    env = environment(
        PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere", DOIT_FILE=str(tmp_path / "dodo.py")
    )
    done = doitw(made, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert f"root {made}/tasks" in done.stdout


@POSIX
def test_exit_codes_and_options_are_those_of_doit(made: Path) -> None:
    assert doitw(made, "fail").returncode == 1
    assert doitw(made, "nonsense").returncode == 3
    assert "hello 2 from" in doitw(made, "-n", "2", "-P", "thread", "x=2").stdout
    assert "hello   the real dodo" in doitw(made, "list").stdout
    assert doitw(made, "--version").stdout.startswith("0.37.")
    assert "doit help <task-name>" in doitw(made, "--help").stdout
    for words in (["list", "-h"], ["list", "x=1", "--help"], ["help", "list", "-h"]):
        assert "list tasks from dodo file" in doitw(made, *words).stdout, words


@POSIX
def test_refuses_an_empty_argument(made: Path) -> None:
    done = doitw(made, "hello", "")
    assert (done.returncode, done.stderr) == (REFUSED, "ERROR: an empty argument\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], []),
        (["serve", "port=1"], ["serve", "port=1"]),
        (["-h"], ["help"]),
        (["--help"], ["help"]),
        (["serve", "--help"], ["help", "serve"]),
        (["model=x", "-n", "4", "serve", "-h"], ["help", "serve"]),
        (["help", "serve", "-h"], ["help", "serve"]),
        (["serve", "args=--help"], ["serve", "args=--help"]),
    ],
)
def test_words_that_ask_for_help(words: list[str], expected: list[str]) -> None:
    assert doit_words(words, "/root/dodo.py") == ["-f", "/root/dodo.py", *expected]


def test_every_entry_point_leads_to_something() -> None:
    points = [*entry_points(group="doit.COMMAND"), *entry_points(group="doit.BACKEND")]
    ours = [point for point in points if point.dist and point.dist.name == "llamake"]
    assert {point.name for point in ours} > {"run", "list", "forget", "help", "records"}
    for point in ours:
        assert point.load().__module__.startswith("tasks."), point


# --- repairs --------------------------------------------------------------------------------


@POSIX
def test_an_environment_without_our_stamp_is_adopted_if_complete(made: Path) -> None:
    stamp, log = made / ".venv/llamake.stamp", log_of(made)
    content, before = stamp.read_text(encoding="utf-8"), log.stat().st_mtime_ns
    stamp.unlink()
    done = doitw(made)
    assert (done.returncode, log.stat().st_mtime_ns) == (0, before), done.stderr
    assert stamp.read_text(encoding="utf-8") == content


@POSIX
def test_changed_requirements_are_installed_in_place(made: Path) -> None:
    requirements = made / "requirements/llamake.txt"
    kept = made / ".venv/kept"
    kept.touch()
    with requirements.open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    done = doitw(made)
    assert done.returncode == 0, done.stderr
    assert "llamake: the requirements changed, updating .venv …\n" in done.stderr
    assert kept.exists()
    assert "updating" not in doitw(made).stderr


@POSIX
@pytest.mark.parametrize("lost", ["bin/python", "lib", "pyvenv.cfg"])
def test_a_damaged_environment_is_noticed(made: Path, lost: str, tmp_path: Path) -> None:
    damaged = made / ".venv" / lost
    aside = damaged.with_name("aside")
    stamp = (made / ".venv/llamake.stamp").read_text(encoding="utf-8")
    damaged.rename(aside)
    if lost == "bin/python":
        damaged.symlink_to(tmp_path / "deleted")
    # Where the log cannot be written a repair is refused before it touches anything.
    (made / "logs").rename(made / "logs aside")
    (made / "logs").touch()
    try:
        done = doitw(made)
        assert done.returncode == REFUSED
        assert done.stderr.startswith(f"ERROR: cannot write {made}/logs\n"), done.stderr
    finally:
        (made / "logs").unlink()
        (made / "logs aside").rename(made / "logs")
        damaged.unlink(missing_ok=True)
        aside.rename(damaged)
        (made / ".venv/llamake.stamp").write_text(stamp, encoding="utf-8")
    assert doitw(made).stderr == ""


@POSIX
def test_a_moved_checkout_repairs_itself_once_there_is_a_network(
    made: Path, first: subprocess.CompletedProcess[str]
) -> None:
    moved = made.with_name("moved")
    made.rename(moved)
    first.args = moved
    offline = doitw(moved, env=environment(**OFFLINE))
    assert offline.returncode == REFUSED
    progress, what, why, fix = offline.stderr.splitlines()
    assert progress == "llamake: making .venv anew …"
    assert what == "ERROR: cannot install llamake's environment"
    assert re.match("  why: no connection: .*Connection refused", why)
    assert "HTTPS_PROXY" in fix
    assert str(log_of(moved)) in fix

    online = doitw(moved)
    assert online.returncode == 0, online.stderr
    assert online.stderr == "llamake: making .venv anew …\n"
    assert f"root {moved}/tasks" in online.stdout
    assert doitw(moved).stderr == ""


@POSIX
def test_a_killed_first_run_is_repaired_by_one_of_two_at_once(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    killed = subprocess.Popen([checkout / "doitw"], env=environment(), stderr=subprocess.DEVNULL)
    await_text(log_of(checkout), "Collecting")
    # Only the parent: its pip goes on installing into the same folder.
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    two = [
        subprocess.Popen(
            [checkout / "doitw"],
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=600) for process in two]
    for process, (stdout, stderr) in zip(two, outputs, strict=True):
        assert process.returncode == 0, stderr
        assert f"as {process.pid}\n" in stdout
    said = "".join(stderr for _, stderr in outputs)
    assert said.count("waiting") == 2
    assert said.count("making .venv anew") == 1


@POSIX
def test_sigterm_stops_the_installation(tmp_path: Path) -> None:
    checkout = copy_checkout(tmp_path / "checkout")
    process = subprocess.Popen(
        [checkout / "doitw"], env=environment(), text=True, stderr=subprocess.PIPE
    )
    await_text(log_of(checkout), " -m venv ")
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.splitlines()[1:] == ["llamake: stopped; the next run will start over"]
    assert not (checkout / ".venv/llamake.stamp").exists()


def await_text(path: Path, text: str) -> None:
    deadline = time.monotonic() + 300
    while not path.exists() or text not in path.read_text(encoding="utf-8", errors="replace"):
        assert time.monotonic() < deadline, f"{text!r} never came up in {path}"
        time.sleep(0.01)


# --- refusals -------------------------------------------------------------------------------


def with_python(folder: Path, interpreter: Path) -> dict[str, str]:
    """An environment in which `interpreter` is the only Python on PATH."""
    folder.mkdir()
    (folder / "python3").symlink_to(interpreter)
    (folder / "readlink").symlink_to(shutil.which("readlink") or "/bin/readlink")
    return {"PATH": str(folder), "HOME": str(folder)}


@POSIX
def test_without_any_python_says_what_to_install(tmp_path: Path) -> None:
    done = doitw(copy_checkout(tmp_path / "checkout"), env={"PATH": str(tmp_path)})
    assert done.returncode == REFUSED
    what, why, fix = done.stderr.splitlines()
    assert what == "ERROR: no usable Python"
    assert why == "  why: Python 3.10 or newer is needed, found: none"
    assert "apt install python3 python3-venv" in fix


@POSIX
@pytest.mark.parametrize("version", ["2.7", "3.6", "3.9"])
def test_an_old_python_is_named(tmp_path: Path, version: str) -> None:
    olds = sorted((Path.home() / ".pyenv/versions").glob(f"{version}.*/bin/python"))
    if not olds:
        pytest.skip(f"no Python {version} here")
    env = with_python(tmp_path / "bin", olds[0])
    done = doitw(copy_checkout(tmp_path / "checkout"), env=env)
    assert done.returncode == REFUSED
    assert f"found: {tmp_path}/bin/python3 (Python {version}." in done.stderr
    if version != "2.7":
        done = doitw(tmp_path, start=(str(olds[0]), str(ROOT / "tasks/bootstrap.py")))
        assert done.returncode == REFUSED
        assert done.stderr.startswith("ERROR: this Python is too old for llamake\n")


def python_without(folder: Path, module: str) -> Path:
    """A real interpreter of its own whose standard library lacks `module`, as on Debian."""
    real = Path(os.path.realpath(sys.executable))
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = folder / "lib" / version
    library.mkdir(parents=True)
    (folder / "bin").mkdir()
    interpreter = folder / "bin" / version
    shutil.copy2(real, interpreter)
    for item in Path(os.__file__).parent.iterdir():
        if item.name not in (module, "site-packages"):
            (library / item.name).symlink_to(item)
    return interpreter


@POSIX
@pytest.mark.parametrize("module", ["ensurepip", "venv"])
def test_a_python_that_cannot_make_environments(tmp_path: Path, module: str) -> None:
    incomplete = python_without(tmp_path / "incomplete", module)
    (tmp_path / "bin").mkdir()
    wrapper = tmp_path / "bin/python3"
    wrapper.write_text(f'#!/bin/sh\nexec "{incomplete}" "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    checkout = copy_checkout(tmp_path / "checkout")
    env = {"PATH": str(tmp_path / "bin")}
    for start in ((), (str(incomplete), "-I", str(checkout / "tasks/bootstrap.py"))):
        done = doitw(checkout, env=env, start=start)
        assert done.returncode == REFUSED, done.stderr
        assert "ERROR: this Python cannot make virtual environments\n" in done.stderr
        assert "apt install python3-venv" in done.stderr.splitlines()[-1]
        assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("output", "why", "fix"),
    [
        (
            "Collecting cmake==4.4.4\n"
            "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you\n"
            "    cmake==4.4.4 from somewhere (from -r bad.txt (line 3)):\n"
            "        Expected sha256 02e9\n",
            "cmake==4.4.4 differs from its recorded sha256",
            "mirror",
        ),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'ProxyError('Cannot "
            "connect to proxy.', NewConnectionError('<pip._vendor.X object at 0x7f>: Failed to "
            "establish a new connection: [Errno 111] Connection refused'))': /simple/cmake/\n"
            "ERROR: Could not find a version that satisfies the requirement cmake==4.4.4\n"
            "ERROR: No matching distribution found for cmake==4.4.4\n",
            "no connection: ProxyError('Cannot connect to proxy.', NewConnectionError('Failed to "
            "establish a new connection: [Errno 111] Connection refused'))",
            "HTTPS_PROXY",
        ),
        (
            "ERROR: Could not find a version that satisfies the requirement cmake==4.4.4\n"
            "ERROR: No matching distribution found for cmake==4.4.4\n",
            "Could not find a version that satisfies the requirement cmake==4.4.4",
            "CPython 3.10",
        ),
        (
            "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on "
            "device\n",
            "no space left on the device",
            "free",
        ),
        ("Error: Unable to create directory '/x'\n", "Unable to create directory '/x'", "doitw"),
        ("", "nothing", "doitw"),
    ],
)
def test_the_decisive_line_of_an_installer(output: str, why: str, fix: str) -> None:
    assert explain(output)[0] == why
    assert fix in explain(output)[1]


# --- lock files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llamake.txt", "test.txt"])
def test_lock_files_have_hashes_and_no_addresses(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|^\s*-(-index|-extra|-find|i |f )|\.(org|com|io)\b", text, re.M)
    entries = re.sub(r"\\\n", " ", text).splitlines()
    requirements = [line for line in entries if line.strip() and not line.startswith("#")]
    assert len(requirements) > 5
    for line in requirements:
        assert re.match(r"[a-z0-9._-]+==[\w.]+ ", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", line), line


def test_the_test_lock_contains_the_runtime_lock() -> None:
    def pins(name: str) -> set[str]:
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        return set(re.findall(r"^[a-z0-9._-]+==[\w.]+", text, re.M))

    assert pins("llamake.txt") < pins("test.txt")
