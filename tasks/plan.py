"""The whole graph for one request: settings to steps, before anything runs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import build, convert, converter, machine, quantize, serve, state, testing, vendor
from tasks import model as models
from tasks import settings as settings_
from tasks.device import DeviceChoice
from tasks.errors import LlamakeError, Refused
from tasks.layout import STATE_NAME, Layout, executable, local_id, python_of
from tasks.model import Checkpoint, GgufFile, Model
from tasks.port import check_port
from tasks.settings import Settings
from tasks.step import Step, Task
from tasks.vendor import Source


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


@dataclass(frozen=True)
class Plan:
    """Steps by name for the model in effect, and for others where they are asked for."""

    settings: Settings
    layout: Layout
    source: Source
    device: DeviceChoice
    vendor: Step
    toolchain: Step
    build: Step
    converter: Step
    test_environment: Step
    models: tuple[ModelSteps, ...]

    @property
    def model(self) -> ModelSteps:
        """The model in effect."""
        return self.models[0]

    @property
    def shared(self) -> tuple[Step, ...]:
        """The steps that serve every model."""
        return self.vendor, self.toolchain, self.build, self.converter

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step but the tests' own."""
        return (*self.shared, *(step for one in self.models for step in one.steps))

    def tasks(self, kind: str) -> Iterator[Task]:
        """doit's sub-tasks of a model step, one for each model."""
        yield from (step.task() for step in self.steps if step.kind == kind)

    @property
    def prepared_by(self) -> list[str]:
        """Names of the tasks after which the model in effect can be served."""
        tools = [] if self.model.convert.skip else [self.converter]
        steps = (self.vendor, self.build, *tools, *self.model.steps)
        return [step.name for step in steps]

    def tidy(self) -> None:
        """Delete the 16-bit file where it is not to be kept and nothing needs it any more."""
        for one in self.models:
            if not one.convert.skip and not one.quantize.skip and not one.quantize.why_pending():
                quantize.drop_intermediate(one.convert)

    def check_serve(self) -> None:
        """Refuse what would fail only after everything was made."""
        if build.platform_of(self.settings) != machine.platform_name():
            raise Refused(
                f"binaries for {self.settings.platform} do not run on this machine",
                f"it is {machine.platform_name()}",
                "make them with 'doit build', and serve without platform=",
            )
        serve.check_arguments(self.settings)
        if self.settings.port:
            check_port(self.settings.host, self.settings.port)

    def serve(self) -> None:
        """Serve the model in effect until a signal ends it."""
        serve.serve(
            self.settings,
            self.layout,
            program=executable(self.build.folder, "llama-server"),
            model=self.model.product,
            name=self.model.model.name,
            on=self.device,
        )

    def test(self) -> None:
        """Run the test suite with what was built and installed here."""
        testing.run_tests(self.settings, self.layout, self.build.folder, self.converter.folder)


def load(root: Path, here: str | None, words: Mapping[str, str] | None) -> Plan:
    """The plan for a command line; a request that cannot be is explained and ends the process."""
    try:
        stand = Path(here or os.getcwd())
        return make_plan(root, settings_.load(words or {}, os.environ, stand), stand, sys.argv)
    except (LlamakeError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", Refused.exit_code)) from None


def make_plan(root: Path, settings: Settings, here: Path, argv: Sequence[str]) -> Plan:
    """Every step for these settings; raises LlamakeError where they cannot be met."""
    layout = Layout.of(root, settings)
    source = vendor.find_source(settings, layout)
    choice = build.choose(settings)
    vendor_step = vendor.vendor_step(source, layout)
    toolchain_step, build_step = build.steps(settings, layout, source, vendor_step, choice)
    converter_step = converter.converter_step(source, layout)
    shared = (vendor_step, build_step, converter_step)
    wanted = [models.resolve(settings, layout, here)]
    requests = [settings]
    for known, request in _other_models(settings, layout, argv):
        if known not in wanted:
            wanted.append(known)
            requests.append(request)
    return Plan(
        settings,
        layout,
        source,
        choice,
        vendor_step,
        toolchain_step,
        build_step,
        converter_step,
        testing.environment_step(layout),
        tuple(
            _model_steps(one, request, layout, source, shared)
            for one, request in zip(wanted, requests, strict=True)
        ),
    )


def _model_steps(
    model: Model,
    settings: Settings,
    layout: Layout,
    source: Source,
    shared: tuple[Step, Step, Step],
) -> ModelSteps:
    vendor_step, build_step, converter_step = shared
    if isinstance(model, GgufFile):
        model_id = local_id(model.path)
        steps = [
            Step(kind, f"{kind} {model.name}", model_id=model_id, skip=f"{model.path} is {how}")
            for kind, how in (
                ("download", "a local file"),
                ("convert", "a GGUF already"),
                ("quantize", "used as it is"),
            )
        ]
        return ModelSteps(model, steps[0], steps[1], steps[2], model.path)
    download = Step(
        "download",
        f"download {model.name}",
        model_id=model.id,
        skip=f"{model.folder} is a local folder",
    )
    convert_step = convert.convert_step(
        model,
        layout,
        source,
        vendor=vendor_step,
        converter=converter_step,
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
    return ModelSteps(model, download, convert_step, quantize_step, product)


def _other_models(
    settings: Settings, layout: Layout, argv: Sequence[str]
) -> Iterator[tuple[Checkpoint, Settings]]:
    """Models that were made before: all of them with `all=yes`, else those named as STEP:<id>."""
    named = {word.split(":", 1)[1] for word in argv if ":" in word and "=" not in word}
    if not settings.all and not named:
        return
    for path in sorted(layout.models.glob(f"gguf/*/{STATE_NAME}")):
        if settings.all or path.parent.name in named:
            known = state.load(path)
            if "reference" not in known.source:
                continue
            with contextlib.suppress(LlamakeError, OSError):
                model = models.checkpoint(Path(str(known.source["reference"])))
                yield model, _as_last_made(settings, known)


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
