"""A watcher that outlives us: when our end of its stdin closes unannounced, our children die.

Run as `python -I guard.py MARK`. SIGKILL and a crash close the pipe as surely as an exit does,
so this covers what no signal handler can. Children are recognised by MARK in their environment,
which grandchildren (ninja's compilers) inherit; a normal end says `bye` first.
"""

import os
import sys
import time

MARK_VARIABLE = "LLAMAKE_RUN"


def kill_marked(mark: str) -> int:
    """Kill every process that carries `mark`; returns how many there were."""
    import psutil

    killed = 0
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and mark in process.environ().get(MARK_VARIABLE, ""):
                process.kill()
                killed += 1
        except (psutil.Error, OSError):
            continue
    return killed


def main() -> None:
    """Wait for the parent's end; unless it said goodbye, leave none of its children behind."""
    import psutil  # noqa: F401  (later this environment may be gone)

    mark = sys.argv[1]
    if sys.stdin.read().strip() == "bye":
        return
    while kill_marked(mark):
        time.sleep(0.05)


if __name__ == "__main__":
    main()
