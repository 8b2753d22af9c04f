"""What a user of the cluster does, on this machine as login node: submit, look, wait, be preempted."""

import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tests.cluster.config import Options, Place
from tests.cluster.processes import SEARCH, until


class Row(NamedTuple):
    """A job as squeue knows it, for five minutes after its end too. An array has one row a task (`12_0`)."""

    job: str
    state: str
    partition: str
    nodes: str
    reason: str

    @property
    def number(self) -> str:
        """The job's number without the task's."""
        return self.job.split("_")[0]


@dataclass(frozen=True, kw_only=True)
class Client:
    place: Place
    options: Options

    @cached_property
    def nodes(self) -> list[str]:
        return [self.place.node(index) for index in range(1, self.options.nodes + 1)]

    @cached_property
    def env(self) -> dict[str, str]:
        """The environment that makes every Slurm command, and what is submitted from here, mean this cluster."""
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))}
        return {**inherited, "PATH": SEARCH, "SLURM_CONF": str(self.place.slurm_conf)}

    def run(self, *words: object, check: bool = True, text: str = "", seconds: float = 120) -> str:
        """Run a command and give what it prints; AssertionError with all it said if it fails and `check`."""
        said = list(map(str, words))
        done = subprocess.run(
            said, env=self.env, input=text, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert (
            not check or done.returncode == 0
        ), f"{' '.join(said)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, script: str, *options: object) -> str:
        """Submit a bash script and give its job number. Its output is in `place.folder`/out unless `options` say else."""
        out = f"--output={self.place.folder}/out/%j.txt"
        return self.run("sbatch", "--parsable", out, *options, text=f"#!/bin/bash\n{script}\n").strip()

    def squeue(self, *options: object) -> list[Row]:
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%P|%N|%r", *options).splitlines()
        return [Row(*line.split("|")) for line in lines]

    def sacct(self, job: str) -> list[dict[str, str]]:
        """What accounting knows of a job, some seconds late: one row for each of its runs."""
        fields = ["JobID", "State", "ExitCode", "NodeList", "ElapsedRaw"]
        lines = self.run("sacct", "-D", "-X", "-n", "-P", "-o", ",".join(fields), "-j", job).splitlines()
        return [dict(zip(fields, line.split("|"), strict=True)) for line in lines]

    def state(self, job: str) -> str:
        """The state of a job, from squeue, then from accounting; empty if nobody knows it."""
        shown = [row.state for row in self.squeue() if row.job == job]
        if not shown and self.options.accounting:
            shown = [row["State"].split()[0] for row in self.sacct(job) if row["JobID"] == job][-1:]
        return shown[0] if shown else ""

    def wait_state(self, job: str, states: str | Collection[str], seconds: float = 120) -> str:
        """Wait until a job is in one of the states; TimeoutError with the state it is in."""
        wanted = {states} if isinstance(states, str) else set(states)
        seen: list[str] = []

        def there() -> bool:
            seen.append(self.state(job))
            return seen[-1] in wanted

        try:
            until(there, seconds, f"job {job}")
        except TimeoutError as late:
            raise TimeoutError(f"{late}: it is {seen[-1] or 'unknown'}, not {' or '.join(sorted(wanted))}") from None
        return seen[-1]

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`, such as Restarts or BatchHost; empty if there is none."""
        words = self.run("scontrol", "-o", "show", "job", job, check=False).split()
        return next((word.split("=", 1)[1] for word in words if word.startswith(f"{name}=")), "")

    def preempt(self, node: str, seconds: int = 3600) -> str:
        """Want a whole node through partition `high`: what runs there in `low` has to go. Gives the job's number."""
        return self.submit(f"exec sleep {seconds}", "-p", "high", "-w", node, "--exclusive", "--job-name=preemptor")

    def cancel(self, *jobs: str) -> None:
        """Cancel jobs (all, if none is named) and wait until nothing of them runs."""
        live = [row.job for row in self.squeue("-t", "PD,R,S,CF,CG,RQ") if not jobs or row.number in jobs]
        if live:
            self.run("scancel", "--", *live, check=False)
            until(lambda: not {row.job for row in self.squeue("-t", "PD,R,S,CF,CG,RQ")} & set(live), 120, "scancel")
