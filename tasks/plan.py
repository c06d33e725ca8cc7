"""The whole graph for one request: settings to steps, before anything runs."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks import arguments, build, converter, machine, quantize, serve, testing, vendor
from tasks import model as models
from tasks import settings as settings_
from tasks.device import DeviceChoice
from tasks.errors import LlamakeError, Refused
from tasks.hub.listing import Kind
from tasks.hub.resolve import Access
from tasks.layout import Layout, executable
from tasks.model import GgufFile, Unresolved
from tasks.model_steps import ModelSteps, apart, model_steps, other_models
from tasks.port import check_port
from tasks.settings import Settings
from tasks.step import Step, Task
from tasks.vendor import Source


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
    companions: tuple[tuple[Kind, ModelSteps], ...] = ()
    """What is served along with the model in effect."""

    @property
    def model(self) -> ModelSteps:
        """The model in effect."""
        return self.models[0]

    @property
    def shared(self) -> tuple[Step, ...]:
        """The steps that serve every model."""
        return self.vendor, self.toolchain, self.build, self.converter

    @property
    def served(self) -> list[ModelSteps]:
        """The model in effect, and what is served along with it."""
        return [self.model, *(one for _, one in self.companions)]

    @property
    def companion_steps(self) -> list[Step]:
        """Those that apply: of a local companion nobody needs to be told."""
        return [step for _, one in self.companions for step in one.steps if not step.skip]

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step but the tests' own."""
        models = [step for one in self.models for step in one.steps]
        return (*self.shared, *models, *self.companion_steps)

    @property
    def notes(self) -> list[str]:
        """Why the model is what it is, where that was a choice."""
        found = [
            one.model.pinned.choice.why
            for one in self.served
            if not isinstance(one.model, Unresolved) and one.model.pinned
        ]
        return [note for note in found if note]

    def tasks(self, kind: str) -> Iterator[Task]:
        """doit's sub-tasks of a model step, one for each model."""
        yield from (step.task() for step in self.steps if step.kind == kind)

    @property
    def prepared_by(self) -> list[str]:
        """Names of the tasks after which the model in effect can be served."""
        tools = [self.converter] if any(not one.convert.skip for one in self.served) else []
        steps = (self.vendor, self.build, *tools, *self.model.steps, *self.companion_steps)
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
        arguments.check_arguments(self.settings)
        if self.settings.port:
            check_port(self.settings.host, self.settings.port)

    def serve(self) -> None:
        """Serve the model in effect until a signal ends it."""
        serve.serve(
            self.settings,
            self.layout,
            program=executable(self.build.folder, "llama-server"),
            model=self._served(),
            on=self.device,
        )

    def _served(self) -> arguments.Served:
        files: dict[Kind, list[Path]] = {role: [] for role in Kind}
        for role, one in self.companions:
            files[role].append(one.product)
        model = self.model.model
        return arguments.Served(
            self.model.product,
            model.name,
            mmproj=model.mmproj if isinstance(model, GgufFile) else None,
            draft=next(iter(files[Kind.DRAFT]), None),
            adapters=tuple(files[Kind.ADAPTER]),
        )

    def test(self) -> None:
        """Run the test suite with what was built and installed here."""
        testing.run_tests(self.settings, self.layout, self.build.folder, self.converter.folder)


hub_access = Access.NEVER
"""Set by the command that is run, before the graph is read."""
_WITHOUT_MODEL = {"vendor", "toolchain", "build", "converter", "test_environment", "test"}


def access_for(tasks: Sequence[str]) -> Access:
    """What running these tasks (none: `serve`) may do to resolve the model."""
    kinds = {task.split(":")[0] for task in tasks}
    return Access.NEVER if kinds and kinds <= _WITHOUT_MODEL else Access.RESOLVE


def load(root: Path, here: str | None, words: Mapping[str, str] | None) -> Plan:
    """The plan for a command line; a request that cannot be is explained and ends the process."""
    try:
        stand = Path(here or os.getcwd())
        settings = settings_.load(words or {}, os.environ, stand)
        return make_plan(root, settings, stand, sys.argv, hub_access)
    except (LlamakeError, OSError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        raise SystemExit(getattr(error, "exit_code", Refused.exit_code)) from None


def make_plan(
    root: Path,
    settings: Settings,
    here: Path,
    argv: Sequence[str],
    access: Access = Access.NEVER,
) -> Plan:
    """Every step for these settings; raises LlamakeError where they cannot be met."""
    layout = Layout.of(root, settings)
    source = vendor.find_source(settings, layout)
    choice = build.choose(settings)
    vendor_step = vendor.vendor_step(source, layout)
    toolchain_step, build_step = build.steps(settings, layout, source, vendor_step, choice)
    converter_step = converter.converter_step(source, layout)
    shared = (vendor_step, build_step, converter_step)
    wanted = [models.resolve_model(settings, layout, here, access)]
    requests = [settings]
    companions: list[tuple[Kind, models.Model]] = []
    for role, one in models.companions(settings, layout, here, access):
        served = [wanted[0], *(other for _, other in companions)]
        companions.append((role, apart(one, served, role)))
    # How the model is quantized says nothing of what is served along with it.
    bare = dataclasses.replace(settings, quantization=None, imatrix=None)
    for known, request in other_models(settings, layout, argv):
        if known.id not in {one.id for one in [*wanted, *(one for _, one in companions)]}:
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
            model_steps(one, request, layout, source, shared)
            for one, request in zip(wanted, requests, strict=True)
        ),
        tuple((role, model_steps(one, bare, layout, source, shared)) for role, one in companions),
    )
