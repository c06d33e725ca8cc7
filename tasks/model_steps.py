"""A model to its steps: what there is to download, to convert and to quantize."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import convert, download, quantize, state
from tasks import model as models
from tasks.errors import LlamakeError, Refused
from tasks.hub import manifest
from tasks.hub.listing import Kind
from tasks.layout import MANIFEST_NAME, STATE_NAME, Layout, python_of
from tasks.model import Checkpoint, GgufFile, Model, Unresolved
from tasks.settings import Settings
from tasks.step import Step
from tasks.vendor import Source

_MODEL_STEPS = ("download", "convert", "quantize")


@dataclass(frozen=True)
class ModelSteps:
    """The steps of one model, and the file that they end in."""

    model: Model
    download: Step
    convert: Step
    quantize: Step
    product: Path

    @property
    def steps(self) -> tuple[Step, Step, Step]:
        """In the order in which they run."""
        return self.download, self.convert, self.quantize


def model_steps(
    model: Model,
    settings: Settings,
    layout: Layout,
    source: Source,
    shared: tuple[Step, Step, Step],
) -> ModelSteps:
    """The steps of a model; `shared` are vendor, build and converter."""
    vendor_step, build_step, converter_step = shared
    if isinstance(model, Unresolved):
        steps = [
            Step(kind, f"{kind} {model.name}", model_id=model.id, unresolved=model.why)
            for kind in _MODEL_STEPS
        ]
        return ModelSteps(model, steps[0], steps[1], steps[2], layout.gguf_folder(model.id))
    download_step = (
        download.download_step(model.pinned, model.id, layout, settings)
        if model.pinned
        else Step(
            "download",
            f"download {model.name}",
            model_id=model.id,
            skip=model.note or f"{_local(model)} is a local {_kind(model)}",
        )
    )
    if isinstance(model, GgufFile):
        convert_step, quantize_step = (
            Step(kind, f"{kind} {model.name}", model_id=model.id, skip=f"{model.path} is {how}")
            for kind, how in (("convert", "a GGUF already"), ("quantize", "used as it is"))
        )
        return ModelSteps(model, download_step, convert_step, quantize_step, model.path)
    settings = dataclasses.replace(
        settings, quantization=model.quantization or settings.quantization
    )
    convert_step = convert.convert_step(
        model,
        layout,
        source,
        vendor=vendor_step,
        converter=converter_step,
        download=download_step,
        python=python_of(converter_step.folder),
        unneeded=lambda: not quantize_step.skip and not quantize_step.why_stale(),
    )
    quantize_step = quantize.quantize_step(
        model,
        layout,
        source,
        settings,
        convert=convert_step,
        build=build_step,
        programs=build_step.folder,
    )
    product = convert.output_path(model, layout, quantize.choose(settings))
    return ModelSteps(model, download_step, convert_step, quantize_step, product)


def _local(model: GgufFile | Checkpoint) -> Path:
    return model.path if isinstance(model, GgufFile) else model.folder


def _kind(model: GgufFile | Checkpoint) -> str:
    return "file" if isinstance(model, GgufFile) else "folder"


def other_models(
    settings: Settings, layout: Layout, argv: Sequence[str]
) -> Iterator[tuple[GgufFile | Checkpoint, Settings]]:
    """Models that were made before: all of them with `all=yes`, else those named as STEP:<id>."""
    named = {word.split(":", 1)[1] for word in argv if ":" in word and "=" not in word}
    if not settings.all and not named:
        return
    for folder in sorted(layout.models.glob("gguf/*/")):
        if settings.all or folder.name in named:
            known = state.load(folder / STATE_NAME)
            request = _as_last_made(settings, known)
            if listed := manifest.load(folder / MANIFEST_NAME):
                if listed.choices:
                    latest = max(listed.choices.values(), key=lambda one: one.when)
                    yield models.model_of(manifest.Pinned(listed, latest), layout), request
            elif known.source.get("type") == "safetensors":
                with contextlib.suppress(LlamakeError, OSError):
                    yield models.checkpoint(Path(str(known.source["reference"]))), request


def _as_last_made(settings: Settings, known: state.State) -> Settings:
    """The settings, with the quantization that a model was last made in where none is asked."""
    made = sorted(
        (record.made, str(record.parameters.get("quantization")))
        for key, record in known.records.items()
        if key.startswith("quantize:") and not settings.quantization
    )
    for _, quantization in reversed(made):
        request = dataclasses.replace(settings, quantization=quantization)
        # Not a type that could not be made now, as without its importance matrix.
        with contextlib.suppress(LlamakeError, KeyError):
            quantize.choose(request)
            return request
    return settings


def apart(one: Model, others: Sequence[Model], role: Kind) -> Model:
    """A companion whose tasks have other names than those of the others from the same place."""
    taken = {other.id for other in others}
    paths = {other.path for other in others if isinstance(other, GgufFile)}
    twice = one.path in paths if isinstance(one, GgufFile) else one.id in taken
    if twice and not isinstance(one, Unresolved):
        raise Refused(
            f"{one.name} is named twice",
            f"as {role.value} it is the very file that is served already",
            "leave it out, or name another one beside it",
        )
    names = (f"{one.id}-{role.name.lower()}{number}" for number in ("", *range(2, len(others) + 2)))
    free = one.id if one.id not in taken else next(name for name in names if name not in taken)
    return dataclasses.replace(one, id=free)
