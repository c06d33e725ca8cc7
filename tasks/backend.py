"""doit's database, kept empty: the records beside the artifacts decide (see state.py).

doit saves only when a run ends, which for a server may be never, and its state knows nothing of
another models folder or of files that came from elsewhere.
"""

from __future__ import annotations

from typing import Any

from doit.dependency import FileChangedChecker
from doit.exceptions import InvalidCommand


class NoDatabase:
    """A doit.BACKEND that remembers nothing and lets the steps' own checks speak."""

    desc = "the records beside the artifacts"

    def __init__(self, name: str, codec: Any, *, module_name: str | None = None) -> None:
        self.name = name

    def get(self, task_id: str, dependency: str) -> str | None:
        """Nothing for doit's own entries (they end in a colon); 'seen before' for every file."""
        return None if dependency.endswith(":") else "recorded"

    def set(self, task_id: str, dependency: str, value: Any) -> None:
        """Nothing to write; `doit ignore` is refused, since it would be without effect."""
        if dependency == "ignore:":
            raise InvalidCommand("llamake's steps cannot be ignored")

    def in_(self, task_id: str) -> bool:
        """Nothing is ever in."""
        return False

    def remove(self, task_id: str) -> None:
        """Nothing to remove; our `forget` marks the records."""

    def remove_all(self) -> None:
        """Nothing to remove."""

    def dump(self) -> None:
        """Nothing to save."""


class RecordedChecker(FileChangedChecker):  # type: ignore[misc]
    """Leaves the question whether a file changed to the step's own check, which reads sha256."""

    def check_modified(self, file_path: str, file_stat: Any, state: Any) -> bool:
        """Never by itself."""
        return False

    def get_state(self, dep: str, current_state: Any) -> str:
        """A constant: nothing is kept here."""
        return "recorded"
