"""`./doitw` inside the environment: check the stamp, map the words, become doit.

doit's own script would read pyproject.toml and doit.cfg of whatever folder the user stands in.
"""

from __future__ import annotations

import os
import sys

STALE = 75
"""Tells doitw.cmd to run bootstrap.py: Windows cannot replace a running environment."""

_HELP = ("-h", "--help")


def doit_words(words: list[str], dodo: str) -> list[str]:
    """doit's arguments for those of the user; `-h` and `TASK --help` lead to our help command."""
    if words[:1] == ["--version"]:
        return words
    if any(word in _HELP for word in words):
        names = [word for word in words if not word.startswith("-") and "=" not in word]
        words = ["help", *[name for name in names if name != "help"][-1:]]
    return ["-f", dodo, *words]


def main(words: list[str]) -> int:
    """Run doit on this checkout's dodo.py; its exit status."""
    root = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    # Python put this very folder here, where tasks/files.py would be a top-level `files`.
    sys.path[0] = root
    from tasks import environment

    if "" in words:
        print("ERROR: an empty argument", file=sys.stderr)
        return environment.REFUSED
    usable = environment.is_current()
    if usable:
        try:
            import doit.doit_cmd
        except ImportError:
            environment.write_stamp(environment.BROKEN)
            usable = False
    if not usable:
        if os.name == "nt":
            return STALE
        script = os.path.join(root, "tasks", "bootstrap.py")
        return environment.become([environment.base_python(), "-I", script, *words])
    doit.doit_cmd.DoitMain.BIN_NAME = "doit"
    program = doit.doit_cmd.DoitMain(config_filenames=())
    return int(program.run(doit_words(words, os.path.join(root, "dodo.py"))) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
