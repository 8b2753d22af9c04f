"""One stage on two nodes of a real Slurm: the numbers of one process, and it survives the loss of a node."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.cluster.cluster import Cluster
from tests.cluster.fixtures import calm, cluster  # noqa: F401
from tests.slurm.cluster_lab import ClusterLab
from tests.slurm.lab import until

pytestmark = pytest.mark.timeout(600)
STEPS = 120
STAGES = {
    "people": {"job": "prepare", "spec": {"dataset": "bios", "people": 16, "biographies": 2, "seed": 0}},
    "tokenizer": {
        "job": "tokenizer",
        "inputs": {"data": "people"},
        "spec": {"split": "pretrain", "vocab_size": 300},
    },
    "tokens": {
        "job": "prepare",
        "inputs": {"data": "people", "tokenizer": "tokenizer"},
        "spec": {"dataset": "packed", "split": "pretrain", "sequence_length": 32},
    },
    "pretrained": {
        "job": "train",
        "inputs": {"data": "tokens", "tokenizer": "tokenizer"},
        "spec": {
            "method": "pretrain",
            "architecture": {
                "model_type": "olmo2",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            "steps": STEPS,
            "global_batch": 8,
            "lr": 1e-3,
        },
    },
}


@pytest.fixture
def there(house: Path, calm: Cluster, tmp_path: Path) -> Iterator[ClusterLab]:  # noqa: F811
    lab = ClusterLab(house=house, folder=tmp_path, cluster=calm)
    lab.profile["setup"] = ["export OMP_NUM_THREADS=1"]
    lab.shapes["main"] |= {"memory": 2, "workers": 1}
    lab.shapes["two"] = {"partition": "main", "nodes": 2, "memory": 2, "workers": 1}
    yield lab
    lab.close()


def losses(root: Path) -> list[float]:
    (path,) = root.glob("artifacts/train/*/loss.parquet")
    return list(pq.read_table(path)["loss"].to_pylist())


@pytest.fixture(scope="module")
def alone(house: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The loss curve of one plain process on this machine."""
    from tests.slurm.lab import Lab

    lab = Lab(house=house, folder=tmp_path_factory.mktemp("alone"))
    try:
        lab.run("launch", lab.study(STAGES))
        return losses(lab.root)
    finally:
        lab.close()


def test_two_nodes_learn_what_one_process_learns(there: ClusterLab, alone: list[float]) -> None:
    """ZeRO-2, two ranks on each of two nodes, over gloo. In fp32 only the order of additions differs."""
    there.jobs["train"] = {"shape": "two", "threads": 1, "zero": 2, "processes": 2}
    study = there.study(STAGES)
    there.launch(study)
    made = there.done(study, 240)
    assert losses(there.root) == pytest.approx(alone, abs=5e-5)
    log = next(there.root.glob("artifacts/train/*/log.txt")).read_text()
    assert made["pretrained"]["metrics"]["steps"] == STEPS, log
    assert not list(there.root.glob("work/*/help.*")) and not list(there.root.glob("submissions/lab/*/*.meet"))


def test_the_loss_of_a_node_is_survived(there: ClusterLab, alone: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMARK_SAVE_SECONDS", "1")
    there.jobs["train"] = {"shape": "two", "threads": 1, "zero": 1}
    study = there.study(STAGES)
    there.launch(study)
    event = there.begun("pretrained", seconds=180)
    state = there.work(event["fingerprint"]) / "state" / "saves"
    until(lambda: state.is_dir() and any(state.iterdir()), 120)
    job = there.job_of("pretrained")
    nodes = there.cluster.run("scontrol", "show", "hostnames", there.cluster.field(job, "NodeList")).split()
    other = next(node for node in nodes if node != event["node"])
    there.cluster.kill_node(other)
    until(lambda: [e for e in there.told_of("pretrained") if e[0] in ("failed", "lost")], 120)
    there.cluster.restore_node(other)
    there.launch(study)
    there.done(study, 300)
    assert losses(there.root) == pytest.approx(alone, abs=5e-5)
    kinds = [reason for event, _, reason in there.told_of("pretrained") if event in ("failed", "lost")]
    assert kinds and set(kinds) <= {"NODE_FAIL", "LOST"}, kinds
