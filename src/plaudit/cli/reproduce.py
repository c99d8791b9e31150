"""`plaudit reproduce`: the experiments that decide what a system claims."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plaudit.cli.command import FAILED_CHECK, aligned
from plaudit.errors import Interrupted, PlauditError, RecipeError

if TYPE_CHECKING:
    from plaudit.audit.experiment import Job
    from plaudit.audit.record import Record
    from plaudit.recipe.experiment import Experiment


def run(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="SYSTEM", help="S101, an experiment's name, or a file.", show_default=False),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All that ship.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Every arm for one step, without a verdict.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at the same time, each in a process with one thread.")] = 1,
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones are reused.")] = Path("runs/experiments"),
    records: Annotated[
        Path | None, typer.Option(help="Folder of the records.", show_default="docs/results, or records in --out")
    ] = None,
) -> None:
    """Run the experiments of systems: what is missing, then the verdict."""
    from plaudit.audit.experiment import jobs_of
    from plaudit.recipe.experiment import find, load_experiment, shipped

    if every == bool(names):
        raise RecipeError(
            f"reproduce: name experiments or give --all, one of the two; there are {', '.join(shipped())}"
        )
    experiments = {name: load_experiment(path) for name, path in find(list(names or shipped())).items()}
    planned = {
        name: jobs_of(experiment, out / "quick" if quick else out, quick) for name, experiment in experiments.items()
    }
    queue = Queue(experiments, planned, None if quick else records or _records(out))
    sys.exit(queue.run(jobs))


def _records(out: Path) -> Path:
    from plaudit.audit.record import IN_THE_REPOSITORY, folder

    return IN_THE_REPOSITORY if folder() == IN_THE_REPOSITORY else out / "records"


class Queue:
    """The runs of several experiments; each is judged as soon as its last run has ended. Where `records` is None nothing is."""

    def __init__(self, experiments: dict[str, Experiment], planned: dict[str, list[Job]], records: Path | None) -> None:
        self.experiments, self.planned, self.records = experiments, planned, records
        self.errors: dict[Path, str] = {}
        self.left = {job.folder for some in planned.values() for job in some if not job.is_done or records is None}
        self.total, self.done = len(self.left), 0
        self.unjudged = list(planned)
        self.failed = False
        self.line = Line()

    def run(self, processes: int) -> int:
        from plaudit.audit.experiment import run_job
        from plaudit.audit.queue import Watch, run_queue

        for name, some in self.planned.items():
            done = len({job.folder for job in some} - self.left)
            self.line.say(
                f"{name}: {len(self.experiments[name].arms)} arms, {len(some)} runs, {done} of them done before"
            )
        self._judge()
        todo = list(
            {job.folder: job for some in self.planned.values() for job in some if job.folder in self.left}.values()
        )
        watch = Watch(started=self._started, said=self._said, ended=self._ended, announce=self._announce)
        for stage in sorted({job.stage for job in todo}):
            now = [job for job in todo if job.stage == stage]
            if not run_queue(now, run_job, min(processes, len(now)), watch):
                raise Interrupted(
                    f"stopped with {len(self.left)} of {self.total} runs to go; the same command goes on where it was"
                )
        return FAILED_CHECK if self.failed else 0

    def _announce(self, text: str) -> None:
        self.line.say("finishing the steps that are under way, then saving; once more to stop at once")

    def _started(self, job: Job) -> None:
        self.line.say(f"{self._title(job)}: started")

    def _said(self, job: Job, text: str) -> None:
        self.line.show(f"{self.done} of {self.total} runs done; {self._title(job)}: {text}")

    def _ended(self, job: Job, error: str | None) -> None:
        self.done += 1
        self.left.discard(job.folder)
        if error is not None:
            self.failed = True
            self.errors[job.folder] = error
        self.line.say(
            f"{self._title(job)}: {'done' if error is None else f'FAILED: {error}'} ({self.done} of {self.total})"
        )
        self._judge()

    def _title(self, job: Job) -> str:
        name = next(name for name, some in self.planned.items() if job in some)
        return f"{name} {job.arm}, seed {job.seed}"

    def _judge(self) -> None:
        """What has no run left to wait for."""
        from plaudit.audit.experiment import record_of
        from plaudit.audit.record import write_record

        ended = [name for name in self.unjudged if not any(job.folder in self.left for job in self.planned[name])]
        self.unjudged = [name for name in self.unjudged if name not in ended]
        if self.records is None:
            return
        for name in ended:
            if not any(job.is_done for job in self.planned[name]):
                self.line.say(f"{name}: no run came to an end, so there is no record")
                continue
            try:
                record = record_of(self.experiments[name], self.planned[name], self.errors)
            except PlauditError as error:
                self.failed = True
                self.line.say(f"{name}: {error}")
                continue
            write_record(self.records / f"{name}.json", record)
            self.line.say("\n".join(report(name, record)))


def report(name: str, record: Record) -> Sequence[str]:
    from plaudit.audit.results import effect_text

    head = ("expected", "difference", "verdict")
    rows = [(str(found.expected), effect_text(record, found), found.effect.verdict) for found in record.found]
    return [f"{name}: {record.verdict.upper()}: {record.claim}", *(f"  {line}" for line in aligned(head, rows))]


class Line:
    """Lines, and on a terminal below them one that is rewritten."""

    def __init__(self) -> None:
        self.live, self.shown = sys.stderr.isatty(), 0

    def say(self, text: str) -> None:
        from plaudit.recipe.text import visible_lines

        self._clear()
        typer.echo(visible_lines(text))

    def show(self, text: str) -> None:
        from plaudit.recipe.text import visible

        if self.live:
            self._clear()
            self.shown = len(text)
            typer.echo(visible(text), nl=False, err=True)

    def _clear(self) -> None:
        if self.shown:
            typer.echo("\r" + " " * self.shown + "\r", nl=False, err=True)
            self.shown = 0
