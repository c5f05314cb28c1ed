"""launch on clusters: what is asked of them, what they run, and what a failure there looks like here."""

import json
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from refimpl.parallel import LaunchError, LaunchTimeout, RankError, _node, engines, launch
from refimpl.parallel import cluster as local
from refimpl.parallel.engines import Cluster, Kubernetes, manifest
from refimpl.parallel.launch import Job

ROOT = Path(__file__).resolve().parents[3]


def who_and_sum(x):
    """Every node's name and the sum over the ranks."""
    dist.all_reduce(x)
    print("here is rank", dist.get_rank())
    return os.environ.get("SLURMD_NODENAME", ""), x


def fail_on_the_last():
    """The last rank raises while the others wait for it."""
    if dist.get_rank() == dist.get_world_size() - 1:
        raise ValueError("three is no square")
    dist.barrier()


def wait_for_each_other():
    """Rank 0 waits for all, the others for rank 0."""
    if dist.get_rank() == 0:
        dist.barrier()
    dist.recv(torch.ones(1), 0)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A function that writes course.toml, in a notebook's folder that is the working one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_TOML", str(tmp_path / "course.toml"))

    def write(text=""):
        (tmp_path / "course.toml").write_text(text)
        return tmp_path

    return write


@pytest.fixture
def job(tmp_path):
    """Two processes on each of three nodes."""
    folder = tmp_path / "launch-ab_c"
    folder.mkdir()
    return Job(folder, 2, 3, 60)


# --- settings -------------------------------------------------------------------------------------------


def test_a_process_gets_what_course_toml_says(course, job):
    """Times the processes of a node; what is not set is left to the cluster."""
    course('[cluster]\npartition = "gpu"\naccount = "cs"\ncores = 4\nmemory_gb = 8\ngpus = 1\ninterface = "ib0"')
    cluster = Cluster.read("cluster")
    asked = cluster.parameters(job)
    assert (asked["slurm_nodes"], asked["slurm_ntasks_per_node"], asked["slurm_cpus_per_task"]) == (3, 1, 8)
    assert (asked["slurm_mem"], asked["slurm_gpus_per_node"]) == ("16GB", 2)
    assert (asked["slurm_partition"], asked["slurm_account"]) == ("gpu", "cs")
    assert engines.exports(cluster.interface) == ["export GLOO_SOCKET_IFNAME=ib0", "export NCCL_SOCKET_IFNAME=ib0"]
    course()
    plain = Cluster.read("cluster").parameters(job)
    assert not {"slurm_partition", "slurm_account", "slurm_gpus_per_node"} & set(plain)
    assert engines.exports("") == []


def test_the_tables_of_course_toml_are_these_settings():
    """Every setting stands in the committed file, so that an instructor finds it, with its default."""
    import tomllib

    written = tomllib.loads((ROOT / "course" / "course.toml").read_text(encoding="utf-8"))
    for table, kind in (("cluster", Cluster), ("kubernetes", Kubernetes)):
        assert kind(**written[table]) == kind() and set(written[table]) == set(vars(kind()))


def test_a_misspelt_setting_is_named_with_those_that_exist(course):
    """A cluster that silently ignores an account costs somebody an afternoon."""
    course('[cluster]\nacount = "cs"')
    with pytest.raises(ValueError, match=r"\[cluster\] has no acount; it has account, cores"):
        Cluster.read("cluster")


# --- a node ---------------------------------------------------------------------------------------------


def test_each_cluster_numbers_its_nodes_its_own_way():
    """SLURM, an indexed Job, a TrainJob; nowhere is an error."""
    assert [_node.index({name: "2"}) for name in _node.INDEX] == [2] * len(_node.INDEX)
    with pytest.raises(SystemExit, match="which node is this"):
        _node.index({})


def test_the_first_node_picks_a_port_and_the_others_find_it(tmp_path, monkeypatch):
    """A free one; who waits in vain says for what."""
    endpoint = _node.meet(tmp_path, 0, "n1")
    assert endpoint.startswith("n1:") and _node.meet(tmp_path, 1, "n2") == endpoint
    monkeypatch.setattr(_node, "JOIN_SECONDS", 0.05)
    with pytest.raises(SystemExit, match="node 0 did not come within"):
        _node.meet(tmp_path / "elsewhere", 1, "n2")


def test_a_name_that_leads_to_oneself_is_no_address(monkeypatch):
    """Many a /etc/hosts gives the machine's own name a loopback address: the others would reach themselves."""
    monkeypatch.setattr(_node.socket, "gethostbyname", lambda name: "127.0.1.1")
    assert _node.own_address() == _node.outward_address()
    monkeypatch.setattr(_node.socket, "gethostbyname", lambda name: "10.0.0.7")
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    assert _node.own_address() == "n7"


# --- Kubernetes -----------------------------------------------------------------------------------------


def test_the_manifest_is_what_kubernetes_accepts(job):
    """Against its own schemas, where a misspelt field is an error: a Service and an indexed Job, all pods or none."""
    schemas = pytest.importorskip("kubernetes_validate")
    settings = Kubernetes(image="course:1", claim="home", gpus=1, queue="students")
    service, work = manifest(job, settings, ["python", "x"])
    for item in (service, work):
        schemas.validate(item, "1.34", strict=True)
    assert service["metadata"]["name"] == work["metadata"]["name"] == "launch-ab-c"
    assert service["spec"]["clusterIP"] == "None"
    assert (work["spec"]["completions"], work["spec"]["parallelism"], work["spec"]["backoffLimit"]) == (3, 3, 0)
    assert work["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "students"}
    container = work["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"}
    with pytest.raises(schemas.ValidationError):
        schemas.validate({**work, "spec": {**work["spec"], "completion": 3}}, "1.34", strict=True)


KUBECTL = """#!{python}
import json, os, pathlib, signal, subprocess, sys
here = pathlib.Path(__file__).parent
with (here / "called").open("a") as called:
    print(*sys.argv[1:3], file=called)
if sys.argv[1] == "apply":
    work = json.loads(pathlib.Path(sys.argv[2].partition("=")[2]).read_text())["items"][1]["spec"]
    command = work["template"]["spec"]["containers"][0]["command"]
    pods = [subprocess.Popen(command, env={{**os.environ, "JOB_COMPLETION_INDEX": str(i)}}, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL, start_new_session=True) for i in range(work["completions"])]
    (here / "pods").write_text(json.dumps([pod.pid for pod in pods]))
elif sys.argv[1] == "get":
    alive = [pid for pid in json.loads((here / "pods").read_text()) if pathlib.Path(f"/proc/{{pid}}").exists()]
    print(json.dumps({{"status": {{}} if alive else {{"conditions": [{{"type": "Complete", "status": "True"}}]}}}}))
else:
    for pid in json.loads((here / "pods").read_text()):
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
"""


@pytest.fixture
def kubectl(course, monkeypatch):
    """A kubectl whose pods are processes here, in a notebook's folder that the pods see."""
    folder = course(f'[kubernetes]\nimage = "course:1"\nclaim = "home"\nmount = "{Path.cwd()}"')
    course(f'[kubernetes]\nimage = "course:1"\nclaim = "home"\nmount = "{folder}"')
    (folder / "bin").mkdir()
    script = folder / "bin" / "kubectl"
    script.write_text(KUBECTL.format(python=sys.executable))
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}", prepend=os.pathsep)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the pretended pods are watched in /proc")
def test_the_pods_of_a_launch_meet_and_are_deleted(kubectl, capsys):
    """Two nodes of one process: results in order, prints by rank, nothing left but what kubectl was told."""
    first, second = launch(who_and_sum, 1, torch.ones(2), engine="kubernetes", nnodes=2)
    assert torch.equal(first[1], torch.full((2,), 2.0)) and torch.equal(first[1], second[1])
    assert "rank 1 | here is rank 1" in capsys.readouterr().out
    told = (kubectl / "bin" / "called").read_text().splitlines()
    assert told[0].startswith("apply") and told[-1].startswith("delete") and not list(kubectl.glob("launch-*"))


def test_what_is_missing_for_kubernetes_is_said_before_anything_runs(course, monkeypatch):
    """No image; a folder that pods do not see; no kubectl: then the manifest is left, with the command for it."""
    folder = course()
    with pytest.raises(ValueError, match=r"needs \[kubernetes\] image and claim"):
        launch(who_and_sum, engine="kubernetes")
    course('[kubernetes]\nimage = "a"\nclaim = "b"\nmount = "/nowhere"')
    with pytest.raises(ValueError, match="pods see only /nowhere"):
        launch(who_and_sum, engine="kubernetes")
    course(f'[kubernetes]\nimage = "a"\nclaim = "b"\nmount = "{folder}"')
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(LaunchError, match=r"kubectl apply -f .*job.json"):
        launch(who_and_sum, engine="kubernetes")
    (left,) = folder.glob("launch-*/job.json")
    assert json.loads(left.read_text())["kind"] == "List"


def test_what_kubectl_refuses_is_told(kubectl):
    """In its own words."""
    (kubectl / "bin" / "kubectl").write_text("#!/bin/sh\necho 'no such namespace' >&2; exit 1\n")
    with pytest.raises(LaunchError, match="kubectl apply failed: no such namespace"):
        launch(who_and_sum, engine="kubernetes")


# --- waiting --------------------------------------------------------------------------------------------


def test_a_job_that_never_starts_says_why_it_waits(job, monkeypatch, capsys):
    """In the queue's words, once after a while and at the end."""
    monkeypatch.setattr(engines, "QUEUE_SECONDS", 0)
    monkeypatch.setattr(engines, "PATIENCE_SECONDS", 0)
    with pytest.raises(LaunchError, match="not started within 0 s: PENDING as 7"):
        engines.wait(job, lambda: "PENDING as 7")
    assert capsys.readouterr().out == "launch: waiting for its nodes: PENDING as 7\n"


def test_a_job_that_can_never_start_is_not_waited_for(job):
    """What SLURM keeps in its queue although no node has that much."""
    with pytest.raises(LaunchError, match=r"will never start this \(PENDING PartitionConfig\); \[cluster\] in course"):
        engines.wait(job, lambda: "PENDING PartitionConfig")


def test_nodes_are_asked_to_stop_when_time_is_up(job, monkeypatch):
    """By the file that all of them see; then their stacks are told."""
    monkeypatch.setattr(engines, "START_SECONDS", 0)
    (job.folder / "rendezvous").write_text("n1:1")
    with pytest.raises(LaunchTimeout, match="not every rank started"):
        engines.wait(job, lambda: "" if (job.folder / "stop").exists() else "RUNNING None")
    assert (job.folder / "stop").exists()


# --- SLURM ----------------------------------------------------------------------------------------------


def test_what_is_missing_for_slurm_is_said(course, monkeypatch):
    """The program, or the package that submits."""
    course()
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="needs SLURM's sbatch on this machine; engine='local' runs here"):
        launch(who_and_sum, engine="slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RuntimeError, match="needs submitit: pip install"):
        launch(who_and_sum, engine="slurm")


@pytest.fixture(scope="module")
def cluster():
    """A function that tells a real SLURM of four nodes on this machine what to do."""
    if why := local.missing():
        pytest.skip(why)
    with local.local_cluster(4) as tell:
        yield tell


@pytest.fixture
def on_slurm(cluster, course):
    """The same, with a notebook's folder that its nodes see."""
    course()
    return cluster


def queue():
    """What SLURM still has to do."""
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.e2e
def test_slurm_runs_what_a_laptop_runs(on_slurm, tmp_path):
    """Three nodes: each answers with its own name, and the sum has gone over the network."""
    found = launch(who_and_sum, 1, torch.ones(2), engine="slurm", nnodes=3)
    assert [name for name, _ in found] == ["n1", "n2", "n3"]
    assert all(torch.equal(x, torch.full((2,), 3.0)) for _, x in found)
    assert queue() == "" and not list(tmp_path.glob("launch-*"))


@pytest.mark.slow
@pytest.mark.e2e
def test_failures_on_slurm_read_as_they_do_here(on_slurm):
    """A rank's exception with its line, a deadlock with every rank's, and a request that no node can serve."""
    with pytest.raises(RankError, match=r"(?s)rank 1 failed first.*three is no square.*raise ValueError"):
        launch(fail_on_the_last, 1, engine="slurm", nnodes=2)
    with pytest.raises(LaunchTimeout, match=r"(?s)rank 0 is inside barrier.*dist.barrier\(\).*rank 1 is inside recv"):
        launch(wait_for_each_other, 1, engine="slurm", nnodes=2, timeout=3)
    with pytest.raises(LaunchError, match=r"(?s)(SLURM refuses the job|will never start this).*\[cluster\]"):
        launch(who_and_sum, 999, torch.ones(1), engine="slurm")
    assert queue() == ""


@pytest.mark.slow
@pytest.mark.e2e
def test_a_node_that_dies_ends_the_launch(on_slurm, tmp_path):
    """With a word about the node; whoever waits for it is not kept waiting."""

    def pull_the_plug():
        while not list(tmp_path.glob("launch-*/rank1.ready")):
            time.sleep(0.1)
        time.sleep(1)
        on_slurm("off", "n2")

    plug = threading.Thread(target=pull_the_plug, daemon=True)
    plug.start()
    start = time.monotonic()
    with pytest.raises(LaunchError):
        launch(wait_for_each_other, 1, engine="slurm", nnodes=2, timeout=100)
    assert time.monotonic() - start < 90
    plug.join()
    on_slurm("on", "n2")
