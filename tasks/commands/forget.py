"""`doit forget`: make steps pending, and everything that is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from doit.cmd_base import DoitCmdBase

from tasks import console, state
from tasks.commands import chosen_steps
from tasks.layout import STATE_NAME
from tasks.plan import Plan
from tasks.step import Step


class Forget(DoitCmdBase):  # type: ignore[misc]
    """Nothing is deleted: what is forgotten is made again the next time it is needed."""

    doc_purpose = "make a step and everything downstream pending"
    doc_usage = "[STEP ...] [model=... all=yes]"
    cmd_options = ()

    def _execute(self, pos_args: Sequence[str]) -> int:
        plan: Plan = self.loader.namespace["PLAN"]
        if pos_args:
            steps = downstream(plan, chosen_steps(plan, pos_args))
        else:
            steps = [step for one in plan.models for step in one.steps]
        forgotten = [step.name for step in steps if step.forget()]
        for path, keys in _other_records(plan, steps).items():
            for key in keys:
                state.revise(path, key, forgotten=True)
                forgotten.append(f"{key} of {path.parent.name}")
        for name in forgotten:
            console.line(f"forgot {name}")
        if not forgotten:
            console.line("nothing to forget: it was not made yet")
        return 0


def downstream(plan: Plan, steps: Sequence[Step]) -> list[Step]:
    """`steps` and every step whose data comes from one of them."""
    return [step for step in plan.steps if any(up in steps for up in step.upstream())]


def _other_records(plan: Plan, steps: Sequence[Step]) -> dict[Path, list[str]]:
    """Records made from `steps` that no step of this plan stands for.

    These are a model's other quantizations, and with a shared step forgotten, other models; with
    `all=yes` other downloads as well.
    """
    kinds = {step.kind for step in steps}
    ours = {(step.state_path, step.key) for step in steps}
    affected = {step.state_path for step in steps if step.kind == "convert" and not step.skip}
    if plan.settings.all:
        affected |= {step.state_path for step in steps if step.kind == "download" and step.key}
    if plan.vendor in steps or plan.converter in steps:
        affected |= set(plan.layout.models.glob(f"gguf/*/{STATE_NAME}"))
        kinds |= {"convert", "quantize"}
    return {
        path: [
            key
            for key in state.load(path).records
            if (path, key) not in ours and key.split(":")[0] in kinds
        ]
        for path in sorted(affected)
    }
