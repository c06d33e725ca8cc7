"""doit commands: what looks at the graph or manages it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tasks.errors import Refused
from tasks.plan import Plan
from tasks.settings import did_you_mean
from tasks.step import Step


def chosen_steps(plan: Plan, names: Sequence[str]) -> list[Step]:
    """The steps with these names (`convert`, or `convert:<id>` for one model); all where none.

    A name that no step has is explained and ends the process.
    """
    known = {step.kind for step in plan.steps} | {step.name for step in plan.steps}
    for name in names:
        if name not in known:
            error = Refused(
                f"'{name}' is not a step{did_you_mean(name, known)}",
                fix=f"the steps are {', '.join(dict.fromkeys(s.kind for s in plan.steps))}",
            )
            print(f"ERROR: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code)
    return [step for step in plan.steps if not names or {step.kind, step.name} & set(names)]
