"""A safetensors checkpoint to a 16-bit GGUF, without running any code that came with it."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tasks import console, files, machine, process
from tasks.errors import ConversionError
from tasks.gguf_header import read_header
from tasks.layout import Layout
from tasks.model import Checkpoint
from tasks.state import Json
from tasks.step import Step
from tasks.vendor import CONVERTER, Source

_PERCENT = re.compile(r"Writing:\s+(\d+)%")


def output_path(checkpoint: Checkpoint, layout: Layout, quantization: str) -> Path:
    """Where a checkpoint's GGUF of some type lies."""
    return layout.gguf_folder(checkpoint.id) / f"model.{quantization}.gguf"


def source_note(checkpoint: Checkpoint) -> Mapping[str, Json]:
    """Where a model came from, for its `.state.json`."""
    if checkpoint.pinned:
        return checkpoint.pinned.source
    return {"type": "safetensors", "reference": str(checkpoint.folder), "revision": None}


def convert_step(
    checkpoint: Checkpoint,
    layout: Layout,
    source: Source,
    *,
    vendor: Step,
    converter: Step,
    download: Step,
    python: Path,
    unneeded: Callable[[], bool],
) -> Step:
    """Convert to the checkpoint's own 16-bit type; `unneeded` while nothing reads the result."""
    target = output_path(checkpoint, layout, checkpoint.intermediate)
    inputs = {path.relative_to(checkpoint.folder).as_posix(): path for path in checkpoint.files}
    return Step(
        "convert",
        f"convert {checkpoint.name} to {checkpoint.intermediate}",
        model_id=checkpoint.id,
        folder=target.parent,
        key=f"convert:{checkpoint.intermediate}",
        parameters={
            "outtype": checkpoint.intermediate,
            "source": source.identity,
            "converter": converter.parameters["requirements"],
        },
        inputs=inputs,
        outputs={target.name: target},
        make=lambda: _convert(checkpoint, inputs, target, layout, source, python),
        data_from=(vendor, converter) if download.skip else (vendor, converter, download),
        source=source_note(checkpoint),
        removable_while=unneeded,
    )


def _convert(
    checkpoint: Checkpoint,
    inputs: Mapping[str, Path],
    target: Path,
    layout: Layout,
    source: Source,
    python: Path,
) -> Mapping[str, Json]:
    log = layout.log(f"convert-{checkpoint.id}")
    files.remove(log)
    stage_root = target.parent / f".{target.name}.stage-{os.getpid()}{files.PARTIAL}"
    with (
        staged(inputs, stage_root / checkpoint.folder.name) as stage,
        files.replacing(target, verify=read_header) as partial,
    ):
        argv = [str(python), str(source.root / CONVERTER), str(stage)]
        argv += ["--outfile", str(partial), "--outtype", checkpoint.intermediate]
        try:
            process.run(argv, log=log, cwd=stage_root, env=_environment(source), on_line=_report)
        except process.CommandFailed as failed:
            raise ConversionError(
                f"{checkpoint.name} could not be converted",
                decisive_line(failed.tail),
                f"see {log}",
            ) from None
    return {
        "converter": CONVERTER,
        "source": source.label,
        "platform": machine.platform_name(),
        "python": platform.python_version(),
    }


def _environment(source: Source) -> Mapping[str, str]:
    return {
        "PYTHONPATH": str(source.root / "gguf-py"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _report(line: str) -> None:
    match = _PERCENT.search(line)
    if match:
        console.progress("convert", f"{match[1]}% written")


def decisive_line(tail: Sequence[str]) -> str:
    """The line of a traceback, or of other output, that says what went wrong."""
    lines = [line.strip() for line in tail if line.strip()]
    errors = [line for line in lines if re.match(r"^([\w.]+Error|ERROR|error)\b", line)]
    return (errors or lines or ["it said nothing"])[-1]


@contextmanager
def staged(inputs: Mapping[str, Path], stage: Path) -> Iterator[Path]:
    """A folder with links to `inputs`, by their names, and nothing that the converter would run.

    It loads tokenizers with trust_remote_code, which runs a model's own Python where a JSON file's
    `auto_map` names it: no *.py gets here, and every JSON file comes without `auto_map`.
    """
    try:
        for name, path in inputs.items():
            target = stage / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                continue
            if path.suffix == ".json" and (clean := without_code(path)) is not None:
                target.write_text(clean, encoding="utf-8")
            else:
                _link(path, target)
        yield stage
    finally:
        files.remove(stage.parent)


def without_code(path: Path) -> str | None:
    """A JSON file's text without any `auto_map`; None where there is none to take out."""
    text = path.read_text(encoding="utf-8", errors="replace")
    # A key can be spelled with escapes (\u0061uto_map), so only parsing tells.
    if "auto_map" not in text and "\\u" not in text:
        return None
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path.name} is not JSON", str(error)) from None
    return json.dumps(_strip(data)) if _has_code(data) else None


def _has_code(data: Json) -> bool:
    if isinstance(data, dict):
        return "auto_map" in data or any(_has_code(value) for value in data.values())
    return isinstance(data, list) and any(_has_code(value) for value in data)


def _strip(data: Json) -> Json:
    if isinstance(data, dict):
        return {key: _strip(value) for key, value in data.items() if key != "auto_map"}
    return [_strip(value) for value in data] if isinstance(data, list) else data


def _link(path: Path, target: Path) -> None:
    try:
        target.symlink_to(path)
    except OSError:  # Windows lets few users make symbolic links.
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
