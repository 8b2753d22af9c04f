"""The command `tidemark`: which commands there are. Heavy libraries are imported by those that need them.

Exit status: 0 all is well, 1 the study or the question is wrong, 2 the command line is, 3 cells failed or artifacts are
damaged or `doctor` found what is wrong, 4 another launch is at work, 130 interrupted.
"""

import gc
import os
import sys

import typer
from rich.markup import escape

from slurm import (
    analysis,
    answers,
    cancel,
    commands,
    compact,
    data,
    doctor,
    dynamics,
    figures,
    hub,
    upkeep,
    usage,
    weights,
)
from slurm.terminal import INTERRUPTED, err
from toolkit.failures import POLICY, Failure, classify

app = typer.Typer(
    name="tidemark",
    help="Checkpoint-dynamics studies of language models: one YAML file, `tidemark launch`, `tidemark report`.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (
    commands.plan, commands.launch, commands.status, commands.why, commands.logs, cancel.cancel,
    answers.table, answers.report, analysis.compare, analysis.check, dynamics.dynamics, figures.figure, weights.weights,
    usage.usage, upkeep.verify, upkeep.adopt, upkeep.keep, upkeep.clean, compact.compact, doctor.doctor,
    hub.revisions, hub.lock, hub.prefetch,
):  # fmt: skip
    app.command()(command)
app.add_typer(data.app)


def main() -> None:
    """The entry point: errors of the user are sentences, errors of ours are tracebacks."""
    gc.disable()  # a command makes up to a million small objects and no cycles worth a walk through all of them
    try:
        app()
    except (ValueError, OSError) as error:
        full = classify(error) is Failure.DISK_FULL
        if os.environ.get("TIDEMARK_DEBUG") or not (full or isinstance(error, (ValueError, PermissionError))):
            raise
        remedy = f". {POLICY[Failure.DISK_FULL].remedy}" if full else ""
        err.print(f"[red]error:[/] {escape(str(error))}{remedy}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
