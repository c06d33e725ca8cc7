"""What a run shows of its tasks: one plain line when each starts, ends, fails or is fresh."""

from __future__ import annotations

import time
from typing import Any

from doit.reporter import ConsoleReporter

from tasks import console


class Board(ConsoleReporter):  # type: ignore[misc]
    """doit's reporter; `exit_code` becomes that of the first failure that has one."""

    desc = "llamake's own"

    def __init__(self, outstream: Any, options: Any) -> None:
        super().__init__(outstream, options)
        self.exit_code = 0
        self._started: dict[str, float] = {}

    def execute_task(self, task: Any) -> None:
        """A task starts."""
        self._started[task.name] = time.monotonic()
        if task.actions and "step" in (task.meta or {}):
            console.say(_kind(task), task.doc)

    def add_success(self, task: Any) -> None:
        """A task ended well."""
        if task.actions and "step" in (task.meta or {}):
            took = time.monotonic() - self._started.get(task.name, time.monotonic())
            console.say(_kind(task), f"done in {console.duration(took)}")

    def skip_uptodate(self, task: Any) -> None:
        """Nothing to do for a task."""
        step = (task.meta or {}).get("step")
        if step:
            console.say(_kind(task), step.skip or "fresh")

    def add_failure(self, task: Any, fail: Any) -> None:
        """A task failed: say so at once, others may still be running."""
        if not fail.report:
            return
        self.exit_code = self.exit_code or getattr(fail, "exit_code", 0)
        if type(fail).__name__ == "UnmetDependency":
            return
        console.line(f"ERROR: {task.name}: {fail.get_msg().strip()}")

    def complete_run(self) -> None:
        """The last word, from doit itself."""
        for message in self.runtime_errors:
            console.line(f"ERROR: {message}")


def _kind(task: Any) -> str:
    return str(task.name).split(":")[0]
