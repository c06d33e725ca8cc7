"""`doit run`, the default command: doit's own with our board and exit codes."""

from __future__ import annotations

import sys
from typing import Any

from doit.cmd_run import Run as DoitRun

from tasks import console, plan, step
from tasks.board import Board
from tasks.errors import LlamakeError
from tasks.hub.resolve import Access


class Run(DoitRun):  # type: ignore[misc]
    """Run tasks in parallel threads; exit codes from 10 on tell the class of failure."""

    doc_purpose = "make what is pending and serve"

    def execute(self, params: Any, args: list[str]) -> int:
        """Say what the graph may ask of the hub before it is read."""
        plan.hub_access = plan.access_for(args)
        return int(super().execute(params, args) or 0)

    def _execute(
        self,
        outfile: Any,
        verbosity: int | None = None,
        always: bool = False,
        continue_: bool = False,
        num_process: int = 0,
        par_type: str = "thread",
        single: bool = False,
        pdb: bool = False,
    ) -> int:
        step.always_run = always
        if "serve" in self.sel_tasks:
            try:
                self.loader.namespace["PLAN"].check_serve()
            except LlamakeError as error:
                print(f"ERROR: {error}", file=sys.stderr)
                return error.exit_code
        if plan.hub_access is not Access.NEVER:
            for note in self.loader.namespace["PLAN"].notes:
                console.say("model", note)
        board = Board(sys.stdout, {})
        result = super()._execute(
            outfile,
            verbosity=verbosity,
            always=always,
            continue_=continue_,
            reporter=board,
            num_process=num_process,
            par_type=par_type,
            single=single,
            pdb=pdb,
        )
        return (board.exit_code or int(result)) if result else 0
