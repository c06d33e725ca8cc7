"""`.state.json`: what was made, from what and how; the one memory of the graph.

It lies beside the artifacts, so it goes where they go, and it is written as each step ends,
so no kill loses it. doit's own database is left empty (see backend.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tasks import files
from tasks.files import FileSum

_VERSION = 1
Json = Any


@dataclass(frozen=True)
class Record:
    """One finished step: what it read, with which parameters and tool, and what it wrote."""

    made: str
    seconds: float
    parameters: Mapping[str, Json]
    inputs: Mapping[str, FileSum]
    outputs: Mapping[str, FileSum]
    tool: Mapping[str, Json] = field(default_factory=dict)
    forgotten: bool = False
    """The user wants it made again, whatever lies on the disk."""
    removed: bool = False
    """The outputs were deleted on purpose and are made again only when needed."""


@dataclass(frozen=True)
class State:
    """A folder's records by step key, and where its model came from."""

    source: Mapping[str, Json] = field(default_factory=dict)
    records: Mapping[str, Record] = field(default_factory=dict)


def now() -> str:
    """The time as ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def load(path: Path) -> State:
    """The state in a file; an empty one where there is none or it is damaged."""
    return _read(path) or State()


def _read(path: Path) -> State | None:
    try:
        return _decode(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def update(path: Path, change: Callable[[State], State]) -> None:
    """Read, change and replace a state file; other processes wait for their turn.

    A damaged file is kept aside as `.state.json.damaged`.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f"{path.name}.lock")):
        state = _read(path)
        if state is None:
            os.replace(path, path.with_name(f"{path.name}.damaged"))
        changed = _encode(change(state or State()))
        files.sweep(path)
        files.write_text(path, json.dumps(changed, indent=1, sort_keys=True) + "\n")


def put(path: Path, key: str, record: Record, source: Mapping[str, Json]) -> None:
    """Write one record."""
    update(path, lambda state: State(source or state.source, {**state.records, key: record}))


def revise(path: Path, key: str, **changes: Any) -> None:
    """Change fields of one record, where it exists."""

    def change(state: State) -> State:
        if key not in state.records:
            return state
        record = dataclasses.replace(state.records[key], **changes)
        return State(state.source, {**state.records, key: record})

    update(path, change)


def remember_stats(
    path: Path, key: str, inputs: Mapping[str, FileSum], outputs: Mapping[str, FileSum]
) -> None:
    """Keep new stats of unchanged content, so that it is not read again; best effort."""
    with contextlib.suppress(OSError):
        revise(path, key, inputs=inputs, outputs=outputs)


def _encode(state: State) -> Json:
    return {
        "version": _VERSION,
        "source": dict(state.source),
        "steps": {key: dataclasses.asdict(record) for key, record in state.records.items()},
    }


def _decode(data: Json) -> State:
    if data["version"] != _VERSION:
        raise ValueError("unknown version")
    records = {}
    for key, entry in data["steps"].items():
        for kind in ("inputs", "outputs"):
            entry[kind] = {str(name): FileSum(**value) for name, value in entry[kind].items()}
        records[str(key)] = Record(**entry)
    return State(dict(data["source"]), records)
