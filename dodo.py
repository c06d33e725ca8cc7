"""llamake's graph: a model reference to a running llama-server. `doit help` says how to use it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from doit import doit_cmd, loader

from tasks import plan, process
from tasks.backend import RecordedChecker
from tasks.step import Task, action

DOIT_CONFIG = {
    "default_tasks": ["serve"],
    "backend": "records",
    "check_file_uptodate": RecordedChecker,
    "num_process": 4,
    "par_type": "thread",
    "verbosity": 2,
}

process.install_signal_handlers()
PLAN = plan.load(Path(__file__).parent, loader.initial_workdir, doit_cmd._CMDLINE_VARS)


def task_vendor() -> Task:
    """the llama.cpp source"""
    return PLAN.vendor.task()


def task_toolchain() -> Task:
    """a C++ compiler, where the machine has none"""
    return PLAN.toolchain.task()


def task_build() -> Task:
    """llama-server and llama-quantize"""
    return PLAN.build.task()


def task_converter() -> Task:
    """the converter's Python environment"""
    return PLAN.converter.task()


def task_download() -> Iterator[Task]:
    """a model's files from the hub"""
    yield from PLAN.tasks("download")


def task_convert() -> Iterator[Task]:
    """safetensors to a 16-bit GGUF"""
    yield from PLAN.tasks("convert")


def task_quantize() -> Iterator[Task]:
    """the 16-bit GGUF to the type asked for"""
    yield from PLAN.tasks("quantize")


def task_prepare() -> Task:
    """everything but launching"""
    tidy = [] if PLAN.settings.keep_f16 else [action(PLAN.tidy, "prepare")]
    return {"actions": tidy, "task_dep": PLAN.prepared_by, "io": {"capture": False}}


def task_serve() -> Task:
    """run llama-server"""
    serve = action(PLAN.serve, "serve")
    return {"actions": [serve], "task_dep": ["prepare"], "io": {"capture": False}}


def task_test_environment() -> Task:
    """the tests' Python environment"""
    return PLAN.test_environment.task()


def task_test() -> Task:
    """run the test suite"""
    run = action(PLAN.test, "test")
    needs = ["build", "converter", PLAN.test_environment.name]
    return {"actions": [run], "task_dep": needs, "io": {"capture": False}}
