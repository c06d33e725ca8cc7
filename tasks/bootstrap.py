"""Makes `.venv`. Started by doitw, and by launch.py where the stamp does not hold; stdlib only.

python -I bootstrap.py ARGS...      make the environment if need be, then run doit with ARGS
"""

# No __future__ import: a Python older than 3.7 must come as far as `refuse_old_python`.

import os
import sys


def refuse_old_python() -> None:
    """End with an explanation on a Python that the project does not support."""
    if sys.version_info < (3, 10):  # noqa: UP036
        version = sys.version.split()[0]
        sys.stderr.write(
            f"ERROR: this Python is too old for llamake\n  why: {sys.executable} is {version}\n"
            "  fix: install Python 3.10 or newer, then run ./doitw again\n"
        )
        sys.exit(3)


refuse_old_python()


# The folder of this file is no place to import from: files.py and the like would be found.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from tasks.environment import (  # noqa: E402
    BROKEN,
    PYTHON,
    REFUSED,
    REQUIREMENTS,
    ROOT,
    VENV,
    base_python,
    become,
    read_stamp,
    stamp_lines,
    write_stamp,
)

LOCK_FILE = os.path.join(ROOT, ".venv.lock")
LOG = os.path.join(ROOT, "logs", "bootstrap.log")
CHECK = [PYTHON, "-I", os.path.join(ROOT, "tasks", "environment.py")]
INTERRUPTED = 130
NETWORK_FIX = "check the network (behind a proxy, set HTTPS_PROXY), then run ./doitw again"


class Failure(Exception):
    """The environment cannot be made: what, why, fix."""

    def __str__(self) -> str:
        what, why, fix = self.args
        return f"ERROR: {what}\n  why: {why}\n  fix: {fix}"


def say(text: str) -> None:
    """One line of progress; stdout belongs to the command that follows."""
    print(f"llamake: {text}", file=sys.stderr, flush=True)


class Lock:
    """Lets one process at a time make the environment.

    Its handle is inherited by the installers: if we are killed, the next run waits for them.
    """

    def __enter__(self) -> "Lock":
        self.file = os.open(LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        if not self.acquire(wait=False):
            say("another process is installing into .venv, waiting …")
            self.acquire(wait=True)
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self.file)

    if sys.platform == "win32":

        def acquire(self, wait: bool) -> bool:
            """Take the lock; without `wait`, False where another process holds it."""
            import msvcrt

            while True:
                try:
                    # LK_LOCK itself gives up after ten seconds.
                    msvcrt.locking(self.file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                    return True
                except OSError:
                    if not wait:
                        return False
    else:

        def acquire(self, wait: bool) -> bool:
            """Take the lock; without `wait`, False where another process holds it."""
            import fcntl

            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                return False
            return True


def child_environment() -> dict[str, str]:
    """Our environment less the variables that would send an installation elsewhere."""
    unwanted = {"PYTHONHOME", "PYTHONPATH", "PYTHONPLATLIBDIR", "__PYVENV_LAUNCHER__"}
    unwanted |= {"PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_REQUIRE_HASHES", "PIP_CONSTRAINT"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PIP_USER": "0"}


def runs(argv: list[str]) -> bool:
    """True where a command can be run and succeeds, silently."""
    import subprocess

    quiet = subprocess.DEVNULL
    try:
        return not subprocess.call(argv, stdout=quiet, stderr=quiet, env=child_environment())
    except OSError:
        return False


def run_logged(lock: Lock, argv: list[str]) -> None:
    """Run an installer to its end, its output appended to the log; Failure with its reason."""
    import subprocess

    with open(LOG, "ab") as log:
        log.write(f"+ {' '.join(argv)}\n".encode())
        log.flush()
        start = log.tell()
        status = subprocess.call(
            argv,
            cwd=ROOT,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=() if os.name == "nt" else (lock.file,),
        )
    if status:
        with open(LOG, "rb") as written:
            written.seek(start)
            why, fix = explain(written.read().decode(errors="replace"))
        raise Failure("cannot install llamake's environment", why, f"{fix} (log: {LOG})")


def explain(output: str) -> tuple[str, str]:
    """The decisive line of an installer's output and what to do about it, one line each."""
    import re

    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)error\b", line)] or lines[-1:] or ["nothing"]
    why = re.sub(r"(?i)^error:\s*", "", errors[0])[:300]
    nothing_found = "Could not find a version" in why or "No matching distribution" in why
    broken = re.findall(r"after connection broken by ['\"]?(.+?)['\"]?: /", output)
    if "DO NOT MATCH THE HASHES" in why:
        package = lines[lines.index(errors[0]) + 1 :][:1] or [""]
        return (
            f"{package[0].split(' from ')[0]} differs from its recorded sha256",
            "a proxy or mirror may alter files: try again, or from another network",
        )
    if broken and nothing_found:
        cause = re.sub(r"<[^>]*>: ", "", broken[-1])[:300]
        return f"no connection: {cause}", NETWORK_FIX
    if "(from versions: none)" in why:
        return why, NETWORK_FIX
    if nothing_found:
        return why, "use CPython 3.10 to 3.14 on a common system, then run ./doitw again"
    if re.search(r"No space left on device|Disk quota exceeded", output):
        return "no space left on the device", "free about 300 MB, then run ./doitw again"
    if re.search(
        r"(Connection|Proxy|SSL|Timeout|Protocol|IncompleteRead)Error|IncompleteRead", why
    ):
        return why, NETWORK_FIX
    return why, "put that right, then run ./doitw again"


def require_venv() -> None:
    """Failure where this Python cannot make environments."""
    from importlib.util import find_spec

    # A folder that a removed package left behind has no origin.
    found = {name: find_spec(name) for name in ("venv", "ensurepip")}
    missing = [name for name, spec in found.items() if spec is None or spec.origin is None]
    if missing:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise Failure(
            "this Python cannot make virtual environments",
            f"{sys.executable} ({version}) has no module {' and no '.join(missing)}",
            f"apt install python3-venv (or python{version}-venv; Debian, Ubuntu), "
            "elsewhere install a complete Python 3.10 or newer",
        )


def install(lock: Lock) -> None:
    """Bring `.venv` up to date in place where only the lock changed, else make it anew."""
    os.makedirs(os.path.dirname(LOG), exist_ok=True)
    with open(LOG, "wb"):
        pass
    stamp = read_stamp()
    if len(stamp) > 1 and stamp[0] == stamp_lines()[0] and runs([PYTHON, "-I", "-m", "pip", "-V"]):
        say("the requirements changed, updating .venv …")
        write_stamp(BROKEN)
    else:
        require_venv()
        again = "making .venv anew" if os.path.lexists(VENV) else "first run, installing into .venv"
        say(f"{again} …")
        run_logged(lock, [base_python(), "-I", "-m", "venv", "--clear", VENV])
    pip = [PYTHON, "-I", "-m", "pip", "install", "--disable-pip-version-check"]
    # Most modules are never imported, and those that are get compiled then.
    pip += ["--no-input", "--no-compile"]
    run_logged(
        lock, [*pip, "--require-hashes", "--only-binary", ":all:", "--requirement", REQUIREMENTS]
    )
    run_logged(lock, [*pip, "--no-build-isolation", "--no-deps", "--editable", ROOT])
    if not runs([*CHECK, "installed"]):
        raise Failure(
            "the environment is not usable",
            f"doit or llamake's own commands cannot be imported in {VENV}",
            f"look into {LOG}, delete that folder, then run ./doitw again",
        )


def provide() -> None:
    """Return with a valid `.venv`; Failure where that cannot be had."""
    try:
        with Lock() as lock:
            if not runs([*CHECK, "usable"]):
                install(lock)
    except OSError as error:
        raise Failure(
            f"cannot write {error.filename or VENV}",
            error.strerror or str(error),
            "make the checkout's folder writable for you, or clone it elsewhere",
        ) from error


def main(words: list[str]) -> int:
    """Make the environment and hand over to doit."""
    import signal

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_DFL:
            signal.signal(getattr(signal, name), stop)
    try:
        provide()
    except Failure as failure:
        print(failure, file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        say("stopped; the next run will start over")
        return INTERRUPTED
    return become([PYTHON, os.path.join(ROOT, "tasks", "launch.py"), *words])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
