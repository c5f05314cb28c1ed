"""Where `launch` runs its ranks when this machine is not enough: SLURM by submitit, Kubernetes by an indexed Job.

Both start `_node.py` once per node on a folder that all nodes share, and both wait here for the files that it leaves.
What a job may use stands in `course.toml`, tables [cluster] and [kubernetes]; a notebook names no partition.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from refimpl.parallel._failure import LaunchError
from refimpl.parallel.launch import START_SECONDS, Job

__all__ = ["ENGINES", "Cluster", "Kubernetes", "manifest", "run_on_kubernetes", "run_on_slurm"]

NODE = Path(__file__).with_name("_node.py")
QUEUE_SECONDS = 3600  # that a job may wait for its nodes
HINT = "[cluster] in course/course.toml says what a process gets"
PATIENCE_SECONDS = 10  # after which a caller wants to know what it waits for
ASK_SECONDS = 0.5  # between two questions to a controller that others ask, too
STOP_SECONDS = 30  # for the nodes to write their stacks and end
MEETING = (  # torchrun must be told who is host and where it is: it would look up a name that may be another's
    "--rdzv-backend=c10d", "--rdzv-id={name}", "--rdzv-endpoint={endpoint}",
    "--rdzv-conf=is_host={host},join_timeout=120", "--local-addr={address}",
)  # fmt: skip


# --- settings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """One table of course.toml: what both have."""

    minutes: int = 30  # at most
    cores: int = 1  # of a process
    memory_gb: int = 2  # of a process
    gpus: int = 0  # of a process

    @classmethod
    def read(cls, table: str) -> Any:
        """From `$COURSE_TOML`, else from the course that holds this package; the defaults where there is none."""
        default = Path(__file__).resolve().parents[2] / "course" / "course.toml"
        path = Path(os.environ.get("COURSE_TOML", default))
        given = tomllib.loads(path.read_text(encoding="utf-8")).get(table, {}) if path.is_file() else {}
        known = {option.name for option in fields(cls)}
        if unknown := sorted(set(given) - known):
            raise ValueError(f"{path}: [{table}] has no {', '.join(unknown)}; it has {', '.join(sorted(known))}")
        return cls(**given)


@dataclass(frozen=True)
class Cluster(Settings):
    """[cluster]: what a launch on SLURM gets."""

    partition: str = ""  # "": the cluster's default
    account: str = ""
    interface: str = ""  # of the network between the nodes, for gloo and NCCL; "": what the node's name leads to

    def parameters(self, job: Job) -> dict[str, Any]:
        """submitit's names for it; one task per node, which starts the processes of that node."""
        asked: dict[str, Any] = {
            "slurm_job_name": job.folder.name,
            "slurm_nodes": job.nnodes,
            "slurm_ntasks_per_node": 1,
            "slurm_cpus_per_task": self.cores * job.nproc,
            "slurm_mem": f"{self.memory_gb * job.nproc}GB",
            "slurm_time": self.minutes,
            "slurm_use_srun": True,
            "slurm_additional_parameters": {"no_requeue": True},  # the caller waits, and decides what to run again
        }
        if self.partition:
            asked["slurm_partition"] = self.partition
        if self.gpus:
            asked["slurm_gpus_per_node"] = self.gpus * job.nproc
        if self.account:
            asked["slurm_account"] = self.account
        return asked


@dataclass(frozen=True)
class Kubernetes(Settings):
    """[kubernetes]: where a launch's pods run. The image is the notebook's: same paths, same packages."""

    image: str = ""
    namespace: str = "default"
    claim: str = ""  # the PersistentVolumeClaim with the notebook's folder; many nodes mount it (ReadWriteMany)
    mount: str = "/home/jovyan"  # where the notebook has it
    queue: str = ""  # a LocalQueue of Kueue, which starts all pods or none


# --- what both do -----------------------------------------------------------------------------------------------------


def node_command(job: Job) -> list[str]:
    """The command of each node; what it starts there is left in `command.json` for it to complete."""
    options = [option.replace("{name}", job.folder.name) for option in MEETING]
    line = job.agent("{node}", *options)
    (job.folder / "command.json").write_text(json.dumps(line))
    return [sys.executable, str(NODE), str(job.folder)]


def wait(job: Job, state: Callable[[], str]) -> None:
    """Return when no node runs any more; raise when time is up: for the queue, for the start, for fn.

    `state` asks the cluster, in words; "" when the job has ended.
    """
    begun, started, entered, told = time.monotonic(), None, None, False
    while said := state():
        job.show_output()
        now = time.monotonic()
        started = started or (now if (job.folder / "rendezvous").exists() else None)
        entered = entered or (now if job.ready() else None)
        if started is None and waits_in_vain(said):
            raise LaunchError(f"launch: the cluster will never start this ({said}); {HINT}", job.folder)
        if not told and started is None and now > begun + PATIENCE_SECONDS:
            told = True
            print(f"launch: waiting for its nodes: {said}", flush=True)
        if started is None and now > begun + QUEUE_SECONDS:
            raise LaunchError(f"launch: not started within {QUEUE_SECONDS} s: {said}", job.folder)
        if started and now > (entered + job.timeout if entered else started + START_SECONDS):
            (job.folder / "stop").touch()  # the nodes ask their ranks where they are, and end
            stopped = time.monotonic() + STOP_SECONDS
            while state() and time.monotonic() < stopped:
                time.sleep(ASK_SECONDS)
            raise job.timed_out(ask=False)
        time.sleep(ASK_SECONDS)
    job.show_output(last=True)


# --- SLURM ------------------------------------------------------------------------------------------------------------


def run_on_slurm(job: Job) -> None:
    """One job of `nnodes` tasks; cancelled however this ends."""
    try:
        import submitit
    except ImportError as problem:
        raise RuntimeError(
            "launch: engine='slurm' needs submitit: pip install 'efficient-llm-course[grading]'"
        ) from problem
    if shutil.which("sbatch") is None:
        raise RuntimeError("launch: engine='slurm' needs SLURM's sbatch on this machine; engine='local' runs here")
    cluster = Cluster.read("cluster")
    executor = submitit.AutoExecutor(folder=job.folder / "slurm", cluster="slurm")
    executor.update_parameters(**cluster.parameters(job))
    executor.update_parameters(slurm_setup=exports(cluster.interface))
    try:
        submitted = executor.submit(submitit.helpers.CommandFunction(node_command(job), verbose=False))
    except submitit.core.utils.FailedJobError as refused:
        raise LaunchError(f"launch: SLURM refuses the job: {str(refused).strip()}\n{HINT}", job.folder) from refused
    try:
        wait(job, lambda: slurm_state(submitted.job_id))
    finally:
        subprocess.run(["scancel", submitted.job_id], capture_output=True, check=False)


NEVER = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints", "AccountNotAllowed")
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")


def slurm_state(job_id: str) -> str:
    """STATE REASON as the controller says; "" for a job that has ended, or that it has forgotten."""
    line = ["squeue", "--noheader", "--states=all", "--format=%T %r", f"--jobs={job_id}"]
    said = subprocess.run(line, capture_output=True, text=True, check=False)
    if said.returncode and "Invalid job id" not in said.stderr:
        return "PENDING: the controller does not answer"  # it may come back
    return said.stdout.strip() if said.stdout.startswith(ALIVE) else ""


def waits_in_vain(said: str) -> bool:
    """Whether the queue's reason is one that no waiting removes."""
    return said.startswith("PENDING") and said.split()[-1] in NEVER


def exports(interface: str) -> list[str]:
    """Lines of the job's script. `/etc/hosts` of a node may lead its own name to 127.0.1.1, hence the interface."""
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ()
    return [f"export {name}={interface}" for name in names]


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def manifest(job: Job, settings: Kubernetes, command: list[str]) -> list[dict[str, Any]]:
    """A headless Service, which gives pods their names, and an indexed Job with one pod per node."""
    name = job.folder.name.replace("_", "-").lower()
    limits = {"cpu": str(settings.cores * job.nproc), "memory": f"{settings.memory_gb * job.nproc}Gi"}
    if settings.gpus:
        limits["nvidia.com/gpu"] = str(settings.gpus * job.nproc)
    container: dict[str, Any] = {
        "name": "node",
        "image": settings.image,
        "command": command,
        "workingDir": str(Path.cwd()),
        "resources": {"limits": limits, "requests": limits},
        "volumeMounts": [
            {"name": "course", "mountPath": settings.mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # NCCL and data loaders want more than the usual 64 MiB
        ],
    }
    volumes = [
        {"name": "course", "persistentVolumeClaim": {"claimName": settings.claim}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
    ]
    pod = {"subdomain": name, "restartPolicy": "Never", "containers": [container], "volumes": volumes}
    about: dict[str, Any] = {"name": name, "namespace": settings.namespace}
    work: dict[str, Any] = {
        "completions": job.nnodes,
        "parallelism": job.nnodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one failed node ends the job: the others would wait for it
        "activeDeadlineSeconds": 60 * settings.minutes,
        "ttlSecondsAfterFinished": 600,
        "template": {"metadata": {"labels": {"launch": name}}, "spec": pod},
    }
    labelled = about | ({"labels": {"kueue.x-k8s.io/queue-name": settings.queue}} if settings.queue else {})
    service = {"clusterIP": "None", "selector": {"launch": name}, "publishNotReadyAddresses": True}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": service},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": labelled, "spec": work},
    ]


def run_on_kubernetes(job: Job) -> None:
    """Apply the manifest, wait for the pods' files, delete what was applied."""
    settings = Kubernetes.read("kubernetes")
    if not settings.image or not settings.claim:
        raise ValueError("launch: engine='kubernetes' needs [kubernetes] image and claim in course/course.toml")
    if not job.folder.is_relative_to(settings.mount):
        raise ValueError(
            f"launch: pods see only {settings.mount}, and the notebook's folder is {Path.cwd()}; work there"
        )
    made = manifest(job, settings, node_command(job))
    path = job.folder / "job.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": made}, indent=1))
    if shutil.which("kubectl") is None:
        raise LaunchError(f"launch: there is no kubectl here. To run it elsewhere: kubectl apply -f {path}", job.folder)
    name, space = made[1]["metadata"]["name"], f"--namespace={settings.namespace}"
    kubectl("apply", f"--filename={path}", folder=job.folder)
    try:
        wait(job, lambda: "" if pods_ended(name, space, job.folder) else f"see kubectl describe job {name}")
    finally:
        line = ["kubectl", "delete", "--ignore-not-found", "--wait=false", f"--filename={path}"]
        subprocess.run(line, capture_output=True, check=False)


def pods_ended(name: str, space: str, folder: Path) -> bool:
    """Whether the Job has succeeded or failed as a whole."""
    said = json.loads(kubectl("get", "job", name, space, "--output=json", folder=folder))
    conditions = said.get("status", {}).get("conditions") or []
    return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)


def kubectl(*arguments: str, folder: Path) -> str:
    made = subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=False)
    if made.returncode:
        raise LaunchError(f"launch: kubectl {arguments[0]} failed: {made.stderr.strip()}", folder)
    return made.stdout


ENGINES: dict[str, Callable[[Job], None]] = {"slurm": run_on_slurm, "kubernetes": run_on_kubernetes}
