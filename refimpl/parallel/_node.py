"""One node of a launch on a cluster, run as a script by SLURM or Kubernetes: meet the others, run torchrun, watch.

    python _node.py FOLDER

FOLDER is shared by all nodes. Node 0 picks a free port and writes `rendezvous`; each node completes the command in
`command.json` with what only it knows, and runs it. The file `stop` asks the ranks for their stacks and then ends them,
as does a signal to this process.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

INDEX = ("SLURM_NODEID", "JOB_COMPLETION_INDEX", "PET_NODE_RANK", "GROUP_RANK")  # who numbers the nodes
JOIN_SECONDS = 120
STACK_SECONDS = 0.5  # that faulthandler gets to write


def main(folder: str) -> int:
    shared, node = Path(folder), index(os.environ)
    address = own_address()
    known = {"node": node, "endpoint": meet(shared, node, address), "address": address, "host": str(node == 0).lower()}
    line = [word.format_map(known) for word in json.loads((shared / "command.json").read_text())]
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONUNBUFFERED": "1"}
    with (shared / f"agent{node}.log").open("wb") as log:
        agent = subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(1))
    try:
        while agent.poll() is None:
            if (shared / "stop").exists():
                show_stacks(agent.pid)
                return 1
            time.sleep(0.1)
        return agent.returncode
    finally:
        end(agent)


def index(environment: dict[str, str] | os._Environ) -> int:
    for name in INDEX:
        if name in environment:
            return int(environment[name])
    raise SystemExit(f"_node.py: which node is this? None of {', '.join(INDEX)} is set; a cluster's job sets one")


def own_address() -> str:
    """How the others reach this node: its name where the name leads to a real interface, else its own address."""
    name = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    with suppress(OSError):
        found = socket.gethostbyname(name)
        return name if not found.startswith("127.") else outward_address()
    return outward_address()


def outward_address() -> str:
    """The address that the system would use towards elsewhere; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # TEST-NET-1, which leads nowhere
        return probe.getsockname()[0]
    return "127.0.0.1"


def meet(shared: Path, node: int, address: str) -> str:
    """HOST:PORT of node 0, which picks it: a port that was free a moment ago."""
    path = shared / "rendezvous"
    if node == 0:
        with socket.socket() as probe:
            probe.bind(("", 0))
            text = f"{address}:{probe.getsockname()[1]}"
        part = path.with_suffix(".tmp")
        part.write_text(text)
        part.rename(path)
        return text
    deadline = time.monotonic() + JOIN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit(
                f"_node.py: node 0 did not come within {JOIN_SECONDS} s; is {shared} the same folder there?"
            )
        time.sleep(0.1)
    return path.read_text()


def show_stacks(agent: int):
    for pid in children(agent):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    time.sleep(STACK_SECONDS)


def end(agent: subprocess.Popen):
    """The agent first, so that it starts no more; then the ranks, each a session of its own."""
    ranks = children(agent.pid)
    agent.kill()
    agent.wait()
    for pid in ranks:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def children(pid: int) -> list[int]:
    """Of all threads of a process; Linux only, as clusters are."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, path.read_text().split())
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
