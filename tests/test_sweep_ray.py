"""Sweeps distributed by Ray, on a cluster of two nodes on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.config import load_config
from cascli.errors import RunError, UsageError
from cascli.sweeps.plan import Match, load_plan
from cascli.sweeps.ray_executor import RayExecutor
from cascli.sweeps.records import Record, Records
from cascli.sweeps.tasks import task_of
from cascli.sweeps.units import units

PLAN = """
pair: tiny-random
strategies: [draft, "speculative:k=3", "speculative-cascade:rule=token-v3,alpha=0.3,k=2"]
temperatures: [0.0, 1.0]
limit: 4
max_new_tokens: 8
"""


@pytest.fixture
def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of two nodes with one CPU each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **store})
    cluster.add_node(num_cpus=1, **store)
    cluster.wait_for_nodes()
    yield cluster.address
    cluster.shutdown()


def plain(records: Records) -> list[Record]:
    """What must not depend on where it was computed: everything except the seconds."""
    found = (record.model_copy(update={"seconds": None}) for record in records.read())
    return sorted(found, key=lambda record: record.key)


@pytest.mark.parametrize("alive", [True, False])
def test_a_cluster_that_is_gone_is_not_waited_for(alive: bool) -> None:
    """Its calls never end; as long as a node is alive, the wait continues."""

    looks = []

    class Ray:
        def wait(self, calls: list, num_returns: int, timeout: float | None) -> tuple[list, list]:
            assert timeout is not None
            looks.append(timeout)
            return (calls, []) if len(looks) == 3 else ([], calls)

        def nodes(self) -> list[dict[str, bool]]:
            return [{"Alive": False}, {"Alive": alive}]

    executor = RayExecutor.__new__(RayExecutor)
    executor._ray, executor._last_error = Ray(), "why"
    if alive:
        assert executor._first_of(["call"], patient=True) == "call"
        assert len(looks) == 3
    else:
        with pytest.raises(RunError, match="all workers of the sweep were lost"):
            executor._first_of(["call"], patient=True)


class Lost(Exception):
    """Stands for Ray's own errors."""


def cluster_of(*answers: Any) -> RayExecutor:
    """An executor whose workers answer every call at once: with a value, or by being lost."""

    def get(calls: Any) -> Any:
        for each in calls if isinstance(calls, list) else [calls]:
            if each is None:
                raise Lost
        return calls

    executor = RayExecutor.__new__(RayExecutor)
    executor._ray = SimpleNamespace(
        get=get, wait=lambda calls, **_: (calls, []), exceptions=SimpleNamespace(RayError=Lost)
    )
    remote = [SimpleNamespace(remote=lambda each=each: each) for each in answers]
    executor._workers = [SimpleNamespace(about=each, unable=each) for each in remote]
    return executor


class Report(dict):
    """A worker's answer that can be a key, as Ray's references can."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_machines_that_differ_in_speed_are_all_named() -> None:
    one = Report(processor="A", threads="2", torch="2.13.0")
    about = cluster_of(one, Report(one | {"processor": "B"}), Report(one)).about()
    assert about == {"processor": "A, B", "threads": "2", "torch": "2.13.0", "executor": "ray, 3 workers"}


def test_strategies_that_cannot_run_are_asked_of_a_worker() -> None:
    assert cluster_of({"draft": "why"}).unable() == {"draft": "why"}
    assert cluster_of(None).unable() == {}  # its work is given to others


@pytest.mark.slow
def test_placement_changes_no_answers_and_resume_continues(plan_file: Path, tmp_path: Path, address: str) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert CliRunner().invoke(app, ["sweep", str(plan_file), "-o", str(here), "-q"]).exit_code == 0
    ray = ["--executor", "ray", "--ray-address", address]
    done = CliRunner().invoke(app, ["sweep", str(plan_file), "-o", str(there), "-q", "--limit", "2", *ray])
    assert done.exit_code == 0, done.output
    first = Records(there).file.read_text().splitlines()
    done = CliRunner().invoke(app, ["sweep", str(plan_file), "-o", str(there), "-q", "--resume", *ray])
    assert done.exit_code == 0, done.output
    assert Records(there).file.read_text().splitlines()[: len(first)] == first and len(first) == 16
    assert plain(Records(there)) == plain(Records(here)) and len(plain(Records(here))) == 32
    assert Records(there).header().environment["executor"] == "ray, 2 workers"


@pytest.mark.slow
def test_a_lost_worker_is_replaced(plan_file: Path, address: str) -> None:
    import ray

    plan, budgets = load_plan(plan_file), Match(target_calls_per_token=[0.8], rules=["opt"], k=2)
    exam = task_of(plan.model_copy(update={"match": budgets}), plan_file.parent)
    work = list(units(plan, exam))
    with RayExecutor(load_config(plan.pair), plan, exam, address=address) as cluster:
        cluster.about()
        assert cluster.unable() == {}
        matched = cluster.matched(budgets, [1.0])
        assert [(each.rule, each.temperature) for each in matched] == [("opt", 1.0)]
        first = set(cluster._workers)
        found = []
        for record in cluster.run(work):
            found.append(record)
            if len(found) in (3, 9):
                ray.kill(cluster._workers[0])
        assert len(first) == 2 and len(set(cluster._workers) - first) >= 1
    assert sorted(record.key for record in found) == sorted(unit.key for unit in work)
    assert not [record.error for record in found if record.error]


@pytest.mark.slow
def test_a_pair_that_cannot_be_loaded_is_named(plan_file: Path, address: str) -> None:

    plan = load_plan(plan_file).model_copy(update={"device": "cuda"})
    exam = task_of(plan, plan_file.parent)
    failing = RayExecutor(load_config(plan.pair), plan, exam, address=address)
    with failing as cluster, pytest.raises(RunError, match=r"a worker could not start: .*CUDA"):
        cluster.about()


@pytest.mark.parametrize(("device", "workers", "words"), [("cuda:1", None, "leave out cuda:N"), ("auto", 3, "CPU")])
def test_unavailable_cluster_resources_are_reported_immediately(
    plan_file: Path, address: str, device: str, workers: int | None, words: str
) -> None:

    plan = load_plan(plan_file).model_copy(update={"device": device})
    with pytest.raises(UsageError, match=words):
        RayExecutor(load_config(plan.pair), plan, task_of(plan, Path()), address=address, workers=workers)


def test_without_ray_it_says_what_to_install(plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cascli.sweeps import ray_executor

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'cascli\[ray\]'"):
        ray_executor._ray()


def test_ray_flags_need_the_ray_executor(plan_file: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["sweep", str(plan_file), "-o", str(tmp_path / "out"), "--workers", "2"])
    assert done.exit_code == 2 and "need --executor ray" in done.output
    assert not (tmp_path / "out").exists()
