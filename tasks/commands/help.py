"""`doit help`: tasks, commands and settings on one screen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from doit.cmd_base import Command

from tasks import console
from tasks.commands.list import write_table
from tasks.errors import Refused
from tasks.settings import did_you_mean, keys, show

_SETTINGS = "settings (key=value, or LLAMA_SERVER_KEY in the environment)"
_TASKS = (
    ("serve", "make what is missing, then run llama-server (the default)"),
    ("prepare", "make what is missing, but do not run it"),
    ("vendor", "the llama.cpp source"),
    ("toolchain", "a C++ compiler, where the machine has none"),
    ("build", "llama-server and llama-quantize"),
    ("converter", "the Python environment of the converter"),
    ("download", "a model's files from the hub (local models need none)"),
    ("convert", "a safetensors folder to a 16-bit GGUF"),
    ("quantize", "the 16-bit GGUF to a smaller type"),
    ("test", "run llamake's own tests"),
)
_COMMANDS = (
    ("list", "show which steps are pending, and why"),
    ("forget [STEP ...]", "make steps pending, with all that is made from them"),
    ("settings", "show each setting, its value and where it came from"),
    ("info STEP", "show one step in full"),
    ("help", "this page"),
)
_EXIT_CODES = (
    ("0", "done; a server was asked to stop and did"),
    ("1, 2", "a task failed in a way that has no code of its own"),
    ("3", "refused before anything ran: a bad setting"),
    ("10", "llama.cpp source"),
    ("11", "compiler or compilation"),
    ("12", "converter environment"),
    ("13", "conversion or quantization"),
    ("14", "model missing, damaged or not to be had from the hub"),
    ("15", "server did not start, or died"),
    ("16", "port in use"),
    ("17", "disk full or not writable"),
    ("130", "stopped before the server was ready"),
)


class Help(Command):  # type: ignore[misc]
    """Replaces doit's own help, which knows nothing of settings."""

    name = "help"
    doc_purpose = "show tasks, commands and settings"

    def __init__(self, task_loader: Any = None, cmds: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def execute(self, opt_values: Any, pos_args: Sequence[str]) -> int:
        """Print the page; with a name, what is known of it."""
        settings = [
            (key, show(item, item.default), item.metadata["help"]) for key, item in keys().items()
        ]
        pages: dict[str, Sequence[Sequence[str]]] = {
            "tasks": _TASKS,
            "commands": _COMMANDS,
            _SETTINGS: settings,
            "exit codes": _EXIT_CODES,
        }
        if pos_args:
            known = [row[0].split()[0] for rows in pages.values() for row in rows]
            for name in pos_args:
                if name not in known:
                    print(f"ERROR: no help on '{name}'{did_you_mean(name, known)}", file=sys.stderr)
                    return Refused.exit_code
            pages = {
                title: [row for row in rows if row[0].split()[0] in pos_args]
                for title, rows in pages.items()
            }
            # A task takes them all.
            pages[_SETTINGS] = pages[_SETTINGS] or settings
        console.line("doit TASK [key=value ...]")
        for title, rows in pages.items():
            if rows:
                console.line(f"\n{title}")
                write_table([["  " + row[0], *row[1:]] for row in rows])
        return 0
