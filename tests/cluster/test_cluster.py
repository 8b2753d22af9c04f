"""That the cluster of the tests is a real Slurm: `make cluster`."""

from pathlib import Path

from tests.cluster.cluster import Cluster


def output(cluster: Cluster, job: str) -> str:
    return Path(cluster.place.folder, "out", f"{job}.txt").read_text()


def test_nodes_are_machines_of_their_own(cluster: Cluster) -> None:
    said = cluster.run("srun", f"-N{len(cluster.nodes)}", "hostname").split()
    assert sorted(said) == sorted(cluster.nodes)


def test_an_array_runs_every_task(cluster: Cluster) -> None:
    job = cluster.submit("echo task $SLURM_ARRAY_TASK_ID", "--array=0-5")
    for task in range(6):
        assert cluster.wait_state(f"{job}_{task}", {"COMPLETED", "FAILED"}) == "COMPLETED"


def test_preemption_signals_and_requeues(calm: Cluster) -> None:
    node = calm.nodes[0]
    script = "trap 'echo warned' USR2; while true; do sleep 0.2; done"
    job = calm.submit(script, "-p", "low", "-w", node, "--requeue", "--open-mode=append", "--signal=B:USR2@30")
    calm.wait_state(job, "RUNNING")
    calm.preempt(node)
    calm.wait_state(job, "PENDING")
    assert calm.field(job, "Restarts") == "1"
    assert "warned" in output(calm, job)


def test_a_lost_node_requeues_its_job(calm: Cluster) -> None:
    job = calm.submit("sleep 1000", "--requeue")
    calm.wait_state(job, "RUNNING")
    calm.kill_node(calm.field(job, "BatchHost"))
    calm.wait_state(job, {"PENDING", "NODE_FAIL"})
    calm.wait_state(job, "RUNNING")
    assert calm.field(job, "Restarts") == "1"


def test_a_restarted_controller_loses_nothing(calm: Cluster) -> None:
    job = calm.submit("sleep 4; echo done")
    calm.wait_state(job, "RUNNING")
    calm.stop_controller()
    calm.start_controller()
    assert calm.wait_state(job, {"COMPLETED", "FAILED"}) == "COMPLETED"
    assert output(calm, job) == "done\n"
