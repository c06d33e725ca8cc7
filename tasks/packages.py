"""Python packages by pip: virtual environments, and single packages from their wheels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tasks import console, files, process
from tasks.errors import LlamakeError
from tasks.layout import python_of

_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


def make_environment(
    folder: Path,
    requirements: Path,
    *,
    log: Path,
    error: type[LlamakeError],
    options: Sequence[str] = (),
    project: Path | None = None,
) -> None:
    """Make a virtual environment at `folder` with `requirements`, and `project` in editable form.

    It appears under its name only when it is complete. Only its interpreter may be used: scripts
    name the folder in which it was made.
    """
    with files.replacing(folder) as partial:
        try:
            process.run([sys.executable, "-m", "venv", "--without-pip", str(partial)], log=log)
        except process.CommandFailed as failed:
            raise error(
                f"no virtual environment could be made in {folder.parent}",
                failed.tail[-1] if failed.tail else str(failed),
                f"see {log}",
            ) from None
        pip = [*_PIP, "--python", str(python_of(partial)), "install", "--prefer-binary"]
        _pip([*pip, *options, "-r", str(requirements)], log, error)
        if project:
            editable = ["--no-deps", "--no-build-isolation", "-e", str(project)]
            _pip([*pip, *editable], log, error)
        (partial / "requirements.txt").write_bytes(requirements.read_bytes())
        files.remove(folder)


def download_wheel(requirement: str, sha256: str, folder: Path, *, log: Path) -> Path:
    """Download one wheel, without what it needs, into `folder`; pip checks its sha256.

    `requirement` is `name==version`. Raises SourceError.
    """
    from tasks.errors import SourceError

    wanted = folder / "wanted.txt"
    files.write_text(wanted, f"{requirement} --hash=sha256:{sha256}\n")
    options = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    _pip([*_PIP, "download", "--dest", str(folder), *options, "-r", str(wanted)], log, SourceError)
    return next(folder.glob("*.whl"))


def _pip(argv: Sequence[str], log: Path, error: type[LlamakeError]) -> None:
    who = log.stem

    def report(line: str) -> None:
        if line.startswith(("Collecting ", "Installing collected")):
            console.progress(who, line.split(" (")[0][:100])

    try:
        process.run(argv, log=log, on_line=report)
    except process.CommandFailed as failed:
        raise explain_pip(failed.tail, log, error) from None


def explain_pip(tail: Sequence[str], log: Path, error: type[LlamakeError]) -> LlamakeError:
    """The line of pip's output that decides, and what to do about it."""
    lines = [line.strip() for line in tail]
    text = "\n".join(lines)
    why = next(
        (line for line in lines if "HASHES" in line or "hash" in line.lower()),
        next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else ""),
    ).removeprefix("ERROR: ")
    fix = f"see {log}"
    if "hash" in why.lower():
        fix = f"the download is not what was pinned: try again, then see {log}"
    elif any(word in text for word in ("Connection", "Temporary failure", "No matching", "Proxy")):
        fix = f"check the network (HTTPS_PROXY, PIP_INDEX_URL), then try again; see {log}"
    elif "No space left" in text:
        fix = "free some space, then try again"
    return error("Python packages could not be installed", why, fix)
