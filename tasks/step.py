"""A step makes one artifact: when it is pending, how it runs once, and what doit sees of it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import console, files, process, state
from tasks.errors import LlamakeError, ModelError, StorageError
from tasks.files import FileSum
from tasks.layout import STATE_NAME, safe_name
from tasks.state import Json, Record

Task = dict[str, Any]
"""A task as doit wants it."""

_LONGEST_LOCK = 60
"""Characters of a key in its lock's name, which holds the folder's name as well."""


@dataclass(frozen=True, eq=False, repr=False)
class Step:
    """One artifact of the graph.

    `parameters` is everything that decides the result besides the contents of `inputs`. A step is
    pending when its record disagrees with either, when an output is not as recorded, when it was
    forgotten, or when a step of `data_from` is pending. `make` makes the outputs and returns what
    to note of the tool.
    """

    kind: str
    title: str
    folder: Path = Path()
    key: str = ""
    model_id: str = ""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    outputs: Mapping[str, Path] = field(default_factory=dict)
    must_exist: tuple[Path, ...] = ()
    make: Callable[[], Mapping[str, Json]] | None = None
    data_from: tuple[Step, ...] = ()
    tools: tuple[Step, ...] = ()
    """Steps that must be done before, but whose remaking changes nothing here."""
    source: Mapping[str, Json] = field(default_factory=dict)
    skip: str = ""
    """Why this step does not apply; it then succeeds and is never pending."""
    unresolved: str = ""
    """Why it is not known what this step would make; it is then always pending."""
    unmade: str = "not made yet"
    """What to say while there is no record of it."""
    removable_while: Callable[[], bool] | None = None
    """True while nothing needs the outputs, so that removed ones count as fresh."""

    def __repr__(self) -> str:
        """What `doit info` shows of it."""
        why = self.skip or self.why_pending()
        return f"<{self.name}: {why or 'fresh'}>"

    def is_fresh(self) -> bool:
        """What doit asks before it runs a task."""
        return not self.why_pending()

    @property
    def name(self) -> str:
        """doit's name of the task."""
        return f"{self.kind}:{self.model_id}" if self.model_id else self.kind

    @property
    def state_path(self) -> Path:
        """The file that holds this step's record."""
        return self.folder / STATE_NAME

    @property
    def record(self) -> Record | None:
        """What is known of the last time this step was made."""
        return state.load(self.state_path).records.get(self.key)

    def upstream(self) -> Iterator[Step]:
        """This step and every step whose data it is made from."""
        yield self
        for step in self.data_from:
            yield from step.upstream()

    def removed(self) -> bool:
        """True where the outputs were deleted on purpose and nothing needs them."""
        record = self.record
        return bool(
            record
            and record.removed
            and not any(path.exists() for path in self.outputs.values())
            and self.removable_while
            and self.removable_while()
        )

    def why_pending(self) -> str:
        """Why this step would run, in a few words; empty when it is fresh."""
        if self.skip:
            return ""
        if self.unresolved:
            return self.unresolved
        for step in self.data_from:
            if step.why_pending():
                return f"after {step.kind}"
        return self.why_stale()

    def why_stale(self) -> str:
        """As `why_pending`, but without the steps before it."""
        record = self.record
        if record is None:
            return self.unmade
        if record.forgotten:
            return "forgotten"
        reason = _parameters_changed(record.parameters, self.parameters)
        if reason:
            return reason
        inputs, outputs = dict(record.inputs), dict(record.outputs)
        reason = self._inputs_changed(inputs) or self._outputs_changed(outputs)
        if not reason and (inputs, outputs) != (record.inputs, record.outputs):
            state.remember_stats(self.state_path, self.key, inputs, outputs)
        return reason

    def _inputs_changed(self, sums: dict[str, FileSum]) -> str:
        """Compare the inputs with `sums`, whose stats are brought up to date."""
        for name in sorted(set(sums) ^ set(self.inputs)):
            return f"{name} {'added' if name in self.inputs else 'removed'}"
        for name, path in self.inputs.items():
            try:
                found = self._input_sum(path, sums[name])
            except OSError:
                return f"{name} is missing"
            if found.sha256 != sums[name].sha256:
                return f"{name} changed"
            sums[name] = found
        return ""

    def _input_sum(self, path: Path, known: FileSum | None) -> FileSum:
        """An input's checksum, from whoever made it where that step still vouches for it."""
        for step in self.data_from:
            record = step.record
            name = next((name for name, made in step.outputs.items() if made == path), None)
            if record and name is not None:
                made = record.outputs.get(name)
                if made and (made.vouched_by(path.stat()) if path.exists() else record.removed):
                    return made
        return files.file_sum(path, known)

    def _outputs_changed(self, sums: dict[str, FileSum]) -> str:
        """Compare the outputs with `sums`, whose stats are brought up to date."""
        if self.removed():
            return ""
        for path in self.must_exist:
            if not os.path.exists(path):  # False, too, where it may not be looked at.
                return f"{path.name} is missing"
        for name, path in self.outputs.items():
            if name not in sums:
                return f"{name} is not made yet"
            try:
                found = files.file_sum(path, sums[name])
            except OSError:
                return f"{name} is missing"
            if found.sha256 != sums[name].sha256:
                return f"{name} was changed"
            sums[name] = found
        return ""

    def run(self, always: bool = False) -> None:
        """Make the outputs, unless another process did while we waited for the lock."""
        import filelock

        if self.unresolved or not self.make:
            raise ModelError(f"{self.title} is not possible", self.unresolved)
        with files.storage(self.folder):
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.folder.parent / f".{self.folder.name}.{self._lock}.lock")
            with _held(lock, self.name):
                if not always and not self.why_pending():
                    console.say(self.kind, "made by another llamake meanwhile")
                    return
                for path in (self.folder, *self.outputs.values()):
                    files.sweep(path)
                inputs = {
                    name: self._input_sum(path, self._known(name))
                    for name, path in self.inputs.items()
                }
                started = time.monotonic()
                tool = self.make()
                record = Record(
                    made=state.now(),
                    seconds=round(time.monotonic() - started, 3),
                    parameters=self.parameters,
                    inputs=inputs,
                    outputs={name: files.file_sum(path) for name, path in self.outputs.items()},
                    tool=tool,
                )
                state.put(self.state_path, self.key, record, self.source)

    @property
    def _lock(self) -> str:
        name = safe_name(self.key)
        if len(name) <= _LONGEST_LOCK:
            return name
        return f"{name[:_LONGEST_LOCK]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def _known(self, name: str) -> FileSum | None:
        record = self.record
        return record.inputs.get(name) if record else None

    def forget(self) -> bool:
        """Mark the record so that the step is pending until made again; True if there is one."""
        if self.skip or self.unresolved or self.record is None:
            return False
        state.revise(self.state_path, self.key, forgotten=True)
        return True

    def task(self) -> Task:
        """The task as doit wants it; freshness is asked when doit comes to it."""
        gone = self.skip or self.removed()
        return {
            "name" if self.model_id else "basename": self.model_id or self.kind,
            "doc": self.title,
            "actions": [] if self.skip else [action(lambda: self.run(always_run), self.name)],
            "task_dep": [step.name for step in (*self.data_from, *self.tools)],
            "file_dep": [] if self.skip else [str(p) for p in self._files(self.inputs)],
            "targets": [] if gone else [str(path) for path in self.outputs.values()],
            "uptodate": [self.is_fresh],
            "io": {"capture": False},
            "verbosity": 2,
            "meta": {"step": self},
        }

    def _files(self, named: Mapping[str, Path]) -> list[Path]:
        absent = {p for step in self.data_from if step.removed() for p in step.outputs.values()}
        return [path for path in named.values() if path not in absent]


always_run = False
"""Set by `doit -a`: run what is fresh, too."""


def action(function: Callable[[], None], name: str) -> Callable[[], Any]:
    """A doit action of `function` whose errors become explained failures of the task `name`."""
    from doit.exceptions import TaskFailed

    def act() -> Any:
        try:
            with files.storage(Path(os.getcwd())):
                function()
        except process.Stopped:
            return TaskFailed("stopped", report=False)
        except (LlamakeError, OSError) as error:
            if isinstance(error, OSError):
                error = StorageError(f"{name} could not be made", str(error))
            failure = TaskFailed(str(error))
            failure.exit_code = error.exit_code
            return failure
        return None

    return act


class _held:
    """Hold a file lock; say so where it has to be waited for."""

    def __init__(self, lock: Any, name: str) -> None:
        self.lock, self.name = lock, name

    def __enter__(self) -> None:
        import filelock

        try:
            self.lock.acquire(timeout=0)
        except filelock.Timeout:
            console.say(self.name.split(":")[0], "another llamake is making this; waiting for it")
            self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def _parameters_changed(old: Mapping[str, Json], new: Mapping[str, Json]) -> str:
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before != after:
            if isinstance(before, str) and isinstance(after, str) and len(before + after) < 48:
                return f"{name} changed: {before} → {after}"
            return f"{name} changed"
    return ""
