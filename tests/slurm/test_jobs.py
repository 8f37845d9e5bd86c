"""What Slurm does with the graph of a sweep, on a real one. The jobs are trivial; the cluster is not."""

import multiprocessing
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from lab import Lab
from slurm_helpers import LARGEST_ARRAY, nodes, wait_for
from trivial import Trivial

from qdexp.config import Resources
from qdexp.errors import UserError
from qdexp.sweep import queue
from qdexp.sweep.slurm import Slurm

MakeSlurm = Callable[..., Slurm]
Traces = Callable[[str], int]


def bases(jobs: list[str]) -> list[str]:
    return list(dict.fromkeys(job.partition("_")[0] for job in jobs))


def test_shared_stages_and_arrays_and_one_broken_cell(lab: Lab, slurm: MakeSlurm, traces: Traces) -> None:
    graph = nodes(shared=[], a0=["shared"], a1=["shared"], a2=["shared"], b0=["a0"], b1=["a1"], b2=["a2"])
    jobs = slurm(a1=Trivial(fails=True)).submit(graph)
    assert len(jobs) == 7
    assert len(bases(jobs)) == 3  # one job and two arrays
    lab.drained()
    assert [traces(name) for name in ("shared", "a0", "a2", "b0", "b2")] == [1] * 5
    assert traces("a1") == -2
    assert traces("b1") == -1  # never started, and not waiting for ever either
    states = queue.Watcher().states(jobs)
    assert [states.pop(jobs[2]), states.pop(jobs[5])] == ["FAILED", "CANCELLED"]
    assert set(states.values()) == {"COMPLETED"}


def test_arrays_are_no_larger_than_slurm_takes(lab: Lab, slurm: MakeSlurm, traces: Traces) -> None:
    many: dict[str, list[str]] = {f"a{number}": [] for number in range(2 * LARGEST_ARRAY + 2)}
    after = {f"b{number}": [f"a{number}"] for number in range(2 * LARGEST_ARRAY + 2)}
    jobs = slurm().submit(nodes(**many, **after))
    assert len(bases(jobs)) == 6
    assert queue.limits().array == LARGEST_ARRAY
    lab.drained()
    assert all(traces(name) == 1 for name in (*many, *after))


def test_of_more_jobs_than_the_cluster_takes_the_first_are_submitted(crowded: Lab, slurm: MakeSlurm, traces: Traces) -> None:
    room = queue.limits().room
    assert 6 <= room <= 8
    first, then = [f"a{number}" for number in range(room - 1)], ["b0", "b1"]
    submitter = slurm()
    assert len(submitter.submit(nodes(**{name: [] for name in first}, **{name: [first[0]] for name in then}))) == len(first)
    assert (submitter.left, queue.limits().room) == (2, 1)
    assert len(submitter.submit(nodes(c0=[]))) == 1, "to the last one"
    crowded.drained()
    assert [traces(name) for name in (*first, "c0", *then)] == [1] * room + [-1, -1]


def test_what_is_done_or_queued_is_not_submitted_again(lab: Lab, slurm: MakeSlurm, traces: Traces, place: Path) -> None:
    (place / "traces" / "a0.done").touch()
    graph = nodes(a0=[], a1=[], b0=["a0"], b1=["a1"])
    first = slurm(a1=Trivial(seconds=3)).submit(graph)
    assert len(first) == 3
    assert slurm(sweep="another").submit([*graph, *nodes(c1=["b1"])])[:-1] == []
    lab.drained()
    assert [traces(name) for name in ("a1", "b0", "b1", "c1")] == [1, 1, 1, 1]
    assert traces("a0") == 0
    assert slurm().submit(graph) == []


def submit_all(slurm: Slurm, count: int) -> None:
    slurm.submit(nodes(**{f"a{number}": [] for number in range(count)}))


def test_two_shells_submit_at_once(lab: Lab, slurm: MakeSlurm, traces: Traces) -> None:
    context = multiprocessing.get_context("fork")
    shells = [context.Process(target=submit_all, args=(slurm(sweep=f"shell{shell}"), 5)) for shell in range(2)]
    for shell in shells:
        shell.start()
    for shell in shells:
        shell.join(60)
    assert [shell.exitcode for shell in shells] == [0, 0]
    lab.drained()
    assert [traces(f"a{number}") for number in range(5)] == [1] * 5


def test_preemption_by_a_higher_partition(lab: Lab, slurm: MakeSlurm, traces: Traces, place: Path) -> None:
    (job,) = slurm(partition="preemptible", a=Trivial(seconds=4)).submit(nodes(a=[]))
    wait_for(lambda: list((place / "traces").glob("a.step-*")))
    urgent = ["sbatch", "--partition=main", "--nodes=2", "--exclusive", "--wrap=sleep 2", "--output=/dev/null"]
    subprocess.run(urgent, check=True, capture_output=True)
    wait_for(lambda: (place / "traces" / "a.checkpoint").exists())
    watcher = queue.Watcher()
    assert watcher.states([job])[job] in queue.LIVE
    lab.drained()
    assert traces("a") == 2
    assert watcher.states([job]) == {job: "COMPLETED"}


def test_a_node_crashes(lab: Lab, slurm: MakeSlurm, traces: Traces, place: Path) -> None:
    (job,) = slurm(a=Trivial(seconds=4)).submit(nodes(a=[]))
    wait_for(lambda: list((place / "traces").glob("a.step-*")))
    node = lab.output("squeue", "-h", "-o", "%N", "-j", job)
    lab.crash(node)
    try:
        watcher = queue.Watcher()
        wait_for(lambda: watcher.states([job])[job] in ("PENDING", "RUNNING", "COMPLETED"))  # not the end: it runs again
        wait_for(lambda: traces("a") == 2)
        assert not (place / "traces" / "a.checkpoint").exists()  # nothing but what was written helps here
        wait_for(lambda: watcher.states([job]) == {job: "COMPLETED"})
    finally:
        lab.start(node)


def test_cancel_and_resume(lab: Lab, slurm: MakeSlurm, traces: Traces, place: Path) -> None:
    graph = nodes(a=[], b=["a"])
    jobs = slurm(a=Trivial(seconds=60)).submit(graph)
    wait_for(lambda: traces("a") == -2)
    queue.cancel(jobs)
    lab.drained()
    states = queue.Watcher().states(jobs)
    assert {states[job] for job in jobs} == {"CANCELLED"}
    assert len(slurm(a=Trivial(seconds=0)).submit(graph)) == 2
    lab.drained()
    assert (traces("a"), traces("b")) == (2, 1)


def test_elements_that_are_cancelled_before_their_start_have_an_end(lab: Lab, slurm: MakeSlurm) -> None:
    jobs = slurm(a=Trivial(seconds=60)).submit(nodes(a=[], b0=["a"], b1=["a"]))
    queue.cancel(jobs)
    lab.drained()
    assert set(queue.Watcher().states(jobs).values()) == {"CANCELLED"}


def test_without_accounting(lab_without_accounting: Lab, slurm: MakeSlurm, traces: Traces) -> None:
    lab, watcher = lab_without_accounting, queue.Watcher(grace=0.5)
    jobs = slurm(a=Trivial(seconds=60)).submit(nodes(a=[], b=["a"], c=[]))
    wait_for(lambda: traces("a") == -2)
    lab.run("scancel", "--signal=KILL", jobs[0])
    lab.drained()
    states = watcher.states([*jobs, "1"])
    assert states[jobs[0]] in ("FAILED", "CANCELLED")
    assert traces("c") == 1
    assert states["1"] == "PENDING"  # unknown: not yet called lost
    wait_for(lambda: watcher.states(["1"]) == {"1": queue.LOST}, 5)


def test_what_slurm_refuses_is_one_line(lab: Lab, slurm: MakeSlurm) -> None:
    one = slurm(partition="nosuch")
    with pytest.raises(UserError, match=r"cluster=lab: Slurm refuses the a jobs .*nosuch|invalid partition"):
        one.submit(nodes(a=[]))


def test_resources_reach_the_job(lab: Lab, slurm: MakeSlurm) -> None:
    one = slurm(a=Trivial(seconds=60))
    one.cluster.stages["a"] = Resources(minutes=33, gpus=2, cpus=3, memory_gb=1)
    try:
        (job,) = one.submit(nodes(a=[]))
    finally:
        del one.cluster.stages["a"]
    shown = lab.output("scontrol", "show", "job", job)
    assert "TimeLimit=00:33:00" in shown
    assert "NumCPUs=3" in shown
    assert "gres:gpu:2" in shown
    assert "MinMemoryNode=1G" in shown
