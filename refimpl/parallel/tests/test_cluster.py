"""Several nodes on one machine: figures are what they are said to be, and a lost node costs no result."""

import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from refimpl.parallel import LaunchError, cluster
from refimpl.parallel.tests.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[3]


def test_a_rate_is_read_as_tc_reads_it():
    """Decimal units; what is no rate is answered with one."""
    assert [cluster.bits_per_second(rate) for rate in ("none", "50mbit", "1gbit")] == [None, 50e6, 1e9]
    for wrong in ("50", "mbit", "fast", "-1mbit"):
        with pytest.raises(ValueError, match="such as 50mbit"):
            cluster.bits_per_second(wrong)


def test_each_method_sends_what_its_formula_says():
    """Two ranks in fp32: data parallelism 2 (N-1)/N times the weights' bytes, ZeRO-3 half as much again."""
    per_rank = run_ranks(2, cluster.measure, list(cluster.METHODS), 1)
    payload = {name: found["payload"] for name, found in per_rank[0].items()}
    weights = sum(p.numel() for p in cluster.network().parameters())
    assert (payload["data"], payload["ZeRO-3"]) == (4 * weights, 6 * weights)
    assert payload["ring"] == payload["ring zigzag"] > payload["Ulysses"] > 0
    assert all(found["seconds"] > 0 for found in per_rank[1].values())


def test_training_goes_on_from_its_checkpoint_on_fewer_ranks(tmp_path):
    """Ten steps on two ranks, and ten more on one, are twenty on one."""
    assert run_ranks(2, cluster.train, str(tmp_path / "a"), 10)[0]["begin"] == 0
    resumed = run_ranks(1, cluster.train, str(tmp_path / "a"), 20)[0]
    whole = run_ranks(1, cluster.train, str(tmp_path / "b"), 20)[0]
    assert (resumed["begin"], whole["begin"]) == (10, 0)
    assert resumed["loss"] == pytest.approx(whole["loss"], rel=1e-5)


@pytest.fixture
def pretended(monkeypatch, tmp_path, capsys):
    """A cluster that is told what to do and launches that answer at once; returns what it was told."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "missing", lambda: "")
    monkeypatch.setattr(
        cluster, "local_cluster", lambda nodes: contextlib.nullcontext(lambda *words: told.append(words))
    )

    def launch(fn, nproc, *args, engine="local", nnodes=1, **options):
        if fn is cluster.measure:
            found = {"seconds": 0.002, "wire": 1000.0, "payload": 900}
            slow = {"seconds": 0.003, "wire": 1500.0, "payload": 1400}
            return [{name: slow if name == "ZeRO-3" else found for name in args[0]}] * nnodes
        folder, nodes = Path(args[0]), nnodes
        if nodes == 4:
            (folder / "LAST").write_text("step-00000010")
            (folder / "logs").mkdir()
            raise LaunchError("a node is gone", folder / "logs")
        return [{"begin": 10 if engine == "slurm" else 0, "ranks": nodes, "loss": told.loss.pop(0)}]

    class Told(list):
        loss: list[float]

    told = Told()
    told.loss = [1.0, 1.0]
    monkeypatch.setattr(cluster, "launch", launch)
    return told


def test_the_table_shows_both_times_and_the_ratio(pretended, capsys):
    """1,500 bytes at 10 Mbit/s take 1.2 ms; ZeRO-3 : data = 1.5; the lost node is back in the end."""
    assert cluster.main(["--rates", "none", "10mbit"]) == 0
    said = capsys.readouterr().out
    assert "3 | 1" in said and "ZeRO-3 : data at 10mbit = 1.50" in said
    assert "n4 lost in the middle: 3 nodes went on from step 10 of 30" in said
    assert pretended == [("shape", "none"), ("shape", "10mbit"), ("shape", "none"), ("off", "n4"), ("on", "n4")]


def test_a_run_that_learned_something_else_after_the_loss_is_an_error(pretended, capsys):
    """Exit status 1."""
    pretended.loss = [1.0, 1.01]
    assert cluster.main(["--rates", "10mbit", "--json", "figures.json"]) == 1
    assert Path("figures.json").exists()


def test_a_machine_without_what_it_takes_skips_and_says_why(monkeypatch, capsys):
    """Root, SLURM, namespaces: whichever is not there."""
    monkeypatch.setattr(cluster, "missing", lambda: "needs root")
    assert cluster.main([]) == 0
    assert capsys.readouterr().out == "skipped: needs root\n"


real = pytest.mark.skipif(bool(cluster.missing()), reason=cluster.missing())


@pytest.mark.slow
@pytest.mark.e2e
@real
def test_a_slow_network_makes_zero_3_cost_half_as_much_again_and_a_lost_node_costs_no_result(tmp_path, monkeypatch):
    """Four nodes at 20 Mbit/s. gloo sends a reduce-scatter as an all-reduce: its ZeRO-3 may cost up to double."""
    monkeypatch.chdir(tmp_path)
    with cluster.local_cluster(4) as tell:
        rows = cluster.crossover(tell, 4, ["20mbit"], 2)
        lost = cluster.lose_a_node(tell, 4, 30)
    for row in rows:
        assert row["ms"] > 0.8 * row["wire_ms"]
    assert 1.3 <= cluster.ratio(rows, "20mbit") <= 2.1
    assert (lost["left"], lost["resumed_at"] >= 10) == (3, True)
    assert lost["loss"] == pytest.approx(lost["undisturbed"], rel=1e-5)


SCRIPT = """
    import json, sys
    import torch.distributed as dist
    from refimpl.parallel import cluster
    dist.init_process_group("gloo")
    found = cluster.measure(["data", "ZeRO-3"], 1)
    if dist.get_rank() == 0:
        open(sys.argv[1], "w").write(f"{dist.get_world_size()} {found['ZeRO-3']['payload'] > found['data']['payload']}")
    dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.e2e
@real
def test_sbatch_runs_a_script_on_two_nodes(tmp_path):
    """As the handbook says it, waited for."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    line = ["sbatch", "--wait", "--nodes=2", ROOT / "course/deploy/slurm/torchrun.sbatch", tmp_path / "script.py"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with cluster.local_cluster(2):
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        made = subprocess.run(
            [*line, tmp_path / "found"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
    logs = "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert made.returncode == 0, made.stderr + logs
    assert (tmp_path / "found").read_text() == "2 True"
