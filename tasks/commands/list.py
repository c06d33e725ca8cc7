"""`doit list`: what would happen now, and why."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from doit.cmd_base import DoitCmdBase

from tasks import console, plan
from tasks.commands import chosen_steps
from tasks.hub.resolve import Access
from tasks.step import Step


class List(DoitCmdBase):  # type: ignore[misc]
    """The steps for the model in effect (`all=yes`: every known model) with their status."""

    doc_purpose = "show which steps are pending, and why"
    doc_usage = "[STEP ...] [model=... all=yes]"
    cmd_options = ()

    def execute(self, params: Any, args: list[str]) -> int:
        """Let the graph look at the hub as it is read."""
        plan.hub_access = Access.LOOK
        return int(super().execute(params, args) or 0)

    def _execute(self, pos_args: Sequence[str]) -> int:
        graph = self.loader.namespace["PLAN"]
        rows = [("STEP", "STATUS", "WHY")]
        for step in chosen_steps(graph, pos_args):
            reason = step.why_pending()
            status = "unresolved" if step.unresolved else "pending" if reason else "fresh"
            rows.append((step.name, status, reason or why_fresh(step)))
        if not pos_args:
            unresolved = any(step.unresolved for step in graph.steps)
            then = "after download" if unresolved else f"starts {graph.model.product}"
            rows.append(("serve", "pending", then))
        write_table(rows)
        return 0


def why_fresh(step: Step) -> str:
    """When a step that is not pending was made, or why it does not apply."""
    record = step.record
    if step.skip or record is None:
        return f"does not apply: {step.skip}"
    made = f"made {record.made[:16].replace('T', ' ')} UTC in {console.duration(record.seconds)}"
    return f"{made}; removed, and not needed" if step.removed() else made


def write_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the last one ragged."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        console.line("  ".join([*padded, row[-1]]).rstrip())
