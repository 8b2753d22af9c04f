"""The lab on a real Slurm: the same commands, with a profile for the cluster that the tests start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.slurm.lab import QUIET, Lab, until

SHAPES = {
    "main": {"partition": "main", "workers": 2},
    "low": {"partition": "low", "workers": 1},
}
SIZE = {"cpus": 1, "memory": 1, "hours": 0.2}


@dataclass(kw_only=True)
class ClusterLab(Lab):
    """`shapes` are added to in a test; every shape is small, and `jobs` says that all run in `main`."""

    cluster: Cluster
    shapes: dict[str, dict[str, Any]] = field(default_factory=lambda: {k: dict(v) for k, v in SHAPES.items()})
    jobs: dict[str, dict[str, Any]] = field(default_factory=lambda: {"default": {"shape": "main", "threads": 1}})
    profile: dict[str, Any] = field(default_factory=lambda: {"poll_seconds": 2, "grace_seconds": 20, "idle_minutes": 1})

    def _words(self, words: Any) -> dict[str, Any]:
        said = super()._words(words)
        said["env"] = {**said["env"], **{key: self.cluster.env[key] for key in ("PATH", "SLURM_CONF")}}
        return said

    def launch(self, study: str, *more: object, code: int = 0) -> str:
        """`tidemark launch --cluster`: what it says."""
        return self.said("launch", study, "--cluster", self.write_profile(), *more, code=code)

    def write_profile(self) -> Path:
        path = self.folder / "lab-cluster.yaml"
        shapes = {name: {**SIZE, **shape} for name, shape in self.shapes.items()}
        path.write_text(json.dumps({**self.profile, "shapes": shapes, "jobs": self.jobs}, indent=1))
        return path

    def done(self, study: str, seconds: float = 90) -> Mapping[str, Any]:
        """Wait until every cell is done and no worker is left in Slurm's queue; the records' metrics by cell."""
        until(lambda: self._finished(study), seconds)
        until(lambda: not self.live(), 60)
        return {
            f"{made['provenance']['stage']}": made
            for made in (json.loads(path.read_text()) for path in self.root.glob("artifacts/*/*/artifact.json"))
            if "provenance" in made
        }

    def _finished(self, study: str) -> bool:
        status = self.json("status", study)
        assert not status["failed"] or self.live(), status["failed"]
        stages = status["stages"].values()
        return all(stage["done"] == sum(stage.values()) for stage in stages)

    def live(self) -> list[str]:
        """The numbers of Tidemark's jobs that run or wait."""
        rows = self.cluster.run("squeue", "-h", "-r", "-t", "PD,R,CG,CF,RQ,S", "-o", "%F_%K|%j").splitlines()
        return [row.split("|")[0].removesuffix("_N/A") for row in rows if "|tidemark-" in row]

    def begun(self, cell: str, attempt: int = 1, study: str = "lab", seconds: float = 90) -> dict[str, Any]:
        """The event of an attempt that has started, once its stage has told how far it is."""

        def found() -> Any:
            events = (e for e in self.events(study) if e["event"] == "started" and e["cell"] == cell)
            return next((e for e in events if e["attempt"] == attempt), None)

        event: dict[str, Any] = until(found, seconds)
        until(lambda: (self.work(event["fingerprint"]) / "state" / "progress.json").exists(), seconds)
        return event

    def told_of(self, cell: str, study: str = "lab") -> list[tuple[str, int, str | None]]:
        """(event, attempt, reason) of a cell, in order."""
        return [(e["event"], e["attempt"], e.get("reason")) for e in self.events(study) if e.get("cell") == cell]

    def job_of(self, cell: str) -> str:
        """The number of the job that runs a cell."""
        rows = until(lambda: [r for r in self.json("status", self.study_file)["running"] if r["cell"] == cell])
        return str(rows[0]["job"])

    @property
    def study_file(self) -> str:
        return str(self.folder / "lab.yaml")

    def close(self) -> None:
        """End what a failed test left in the queue."""
        if self.live():
            self.cluster.cancel(*{number.split("_")[0] for number in self.live()})
        super().close()


__all__ = ["QUIET", "ClusterLab", "until"]
