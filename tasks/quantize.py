"""A 16-bit GGUF to the type that was asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tasks import console, files, machine, process, state
from tasks.convert import decisive_line, output_path, source_note
from tasks.errors import ConversionError, Refused
from tasks.gguf_header import read_header
from tasks.layout import Layout, executable
from tasks.model import Checkpoint
from tasks.quantization import QUANTIZATIONS
from tasks.settings import Settings
from tasks.state import Json
from tasks.step import Step
from tasks.vendor import Source

DEFAULT = "q4_k_m"
_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")


def choose(settings: Settings) -> str:
    """The type to quantize to; Refused where it needs an importance matrix that is not given."""
    chosen = settings.quantization or DEFAULT
    if settings.imatrix and not settings.imatrix.is_file():
        raise Refused(f"imatrix={settings.imatrix} is not a file")
    if QUANTIZATIONS[chosen].needs_imatrix and not settings.imatrix:
        raise Refused(
            f"quantization={chosen} needs an importance matrix",
            "at so few bits the quality falls apart without one",
            "name one with imatrix=FILE, or take q2_k",
        )
    return chosen


def quantize_step(
    checkpoint: Checkpoint,
    layout: Layout,
    source: Source,
    settings: Settings,
    *,
    convert: Step,
    build: Step,
    programs: Path,
) -> Step:
    """Quantize the converted file; where its own type was asked for there is nothing to do."""
    chosen = choose(settings)
    title = f"quantize {checkpoint.name} to {chosen}"
    if chosen == checkpoint.intermediate:
        skip = f"{chosen} is what convert makes"
        return Step("quantize", title, model_id=checkpoint.id, skip=skip)
    target = output_path(checkpoint, layout, chosen)
    intermediate = next(iter(convert.outputs.values()))
    inputs = {intermediate.name: intermediate}
    if settings.imatrix:
        inputs["imatrix"] = settings.imatrix

    def make() -> Mapping[str, Json]:
        _quantize(inputs, target, chosen, layout, programs, checkpoint)
        if not settings.keep_f16:
            drop_intermediate(convert)
        made = build.record
        return {
            "program": "llama-quantize",
            "build": {**(made.tool if made else {}), "flags": build.parameters.get("flags", [])},
        }

    return Step(
        "quantize",
        title,
        model_id=checkpoint.id,
        folder=target.parent,
        key=f"quantize:{chosen}",
        parameters={"quantization": chosen, "source": source.identity},
        inputs=inputs,
        outputs={target.name: target},
        make=make,
        data_from=(convert,),
        tools=(build,),
        source=source_note(checkpoint),
    )


def drop_intermediate(convert: Step) -> None:
    """Delete the 16-bit file and note that this was on purpose."""
    state.revise(convert.state_path, convert.key, removed=True)
    for path in convert.outputs.values():
        files.remove(path)


def _quantize(
    inputs: Mapping[str, Path],
    target: Path,
    chosen: str,
    layout: Layout,
    programs: Path,
    checkpoint: Checkpoint,
) -> None:
    log = layout.log(f"quantize-{checkpoint.id}-{chosen}")
    files.remove(log)
    intermediate, *imatrix = inputs.values()
    program = executable(programs, "llama-quantize")
    with files.replacing(target, verify=read_header) as partial:
        argv = [str(program)]
        argv += [word for path in imatrix for word in ("--imatrix", str(path))]
        argv += [str(intermediate), str(partial), chosen.upper(), str(machine.allowed_cpus())]
        try:
            process.run(argv, log=log, on_line=_report)
        except process.CommandFailed as failed:
            raise ConversionError(
                f"{checkpoint.name} could not be quantized to {chosen}",
                decisive_line(failed.tail),
                f"see {log}",
            ) from None


def _report(line: str) -> None:
    match = _TENSOR_LINE.match(line)
    if match:
        console.progress("quantize", f"tensor {match[1]}/{match[2]}")
