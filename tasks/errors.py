"""Every failure a user can meet: what happened, why, what to do next, and an exit code."""

from __future__ import annotations


class LlamakeError(Exception):
    """A failure that is explained instead of traced; `exit_code` is the process's own."""

    exit_code = 1

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        self.what, self.why, self.fix = what, why, fix
        lines = [what, why and f"  why: {why}", fix and f"  fix: {fix}"]
        super().__init__("\n".join(line for line in lines if line))


class Refused(LlamakeError):
    """A request that makes no sense; nothing was run."""

    exit_code = 3


class SourceError(LlamakeError):
    """The llama.cpp source could not be had, or is not the pinned one."""

    exit_code = 10


class BuildError(LlamakeError):
    """No usable compiler, or the compilation failed."""

    exit_code = 11


class ConverterError(LlamakeError):
    """The environment that converts checkpoints could not be made."""

    exit_code = 12


class ConversionError(LlamakeError):
    """Converting or quantizing a model failed."""

    exit_code = 13


class ModelError(LlamakeError):
    """The model is missing, damaged or of a kind that cannot be served."""

    exit_code = 14


class ServerError(LlamakeError):
    """llama-server did not start, did not load the model, or died."""

    exit_code = 15


class PortInUse(LlamakeError):
    """Another process listens where the server should."""

    exit_code = 16


class StorageError(LlamakeError):
    """A disk is full, or a folder cannot be written."""

    exit_code = 17
