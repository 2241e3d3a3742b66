"""Sweeps distributed by Ray, on a cluster of two nodes on this machine."""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.config import load_config
from cascli.errors import RunError, UsageError
from cascli.sweeps.plan import Match, SweepPlan, load_plan
from cascli.sweeps.ray_executor import CHECK_SECONDS, RayExecutor, _Actor
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
    executor._ray, executor._last_error, executor._head, executor._next_check = Ray(), "why", None, 0.0
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
        get=get,
        wait=lambda calls, num_returns, **_: (calls[:num_returns], []),
        exceptions=SimpleNamespace(RayError=Lost),
    )
    remote = [SimpleNamespace(remote=lambda each=each: each) for each in answers]
    executor._workers = [SimpleNamespace(about=each, unable=each) for each in remote]
    executor._reports, executor._joining, executor._next_check, executor._last_error = [], {}, math.inf, ""
    executor._on_note = None
    return executor


class Report(dict):
    """A worker's answer that can be a key, as Ray's references can."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def test_machines_that_differ_in_speed_are_all_named() -> None:
    one = Report(processor="A", threads="2", torch="2.13.0")
    about = cluster_of(one, Report(one | {"processor": "B"}), Report(one)).about()
    assert about == {"processor": "A, B", "threads": "2", "torch": "2.13.0", "executor": "ray, 3 workers"}
    assert cluster_of(one).about()["executor"] == "ray, 1 worker"


def test_workers_that_are_ready_do_not_wait_for_those_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """These join later, unless they would not write the same answers."""
    monkeypatch.setattr("cascli.sweeps.ray_executor.GRACE_SECONDS", 0)
    one, alike, other = Report(torch="1"), Report(torch="1", processor="B"), Report(torch="2")
    cluster, waits, notes, killed = cluster_of(one, alike, other), [], [], []

    def wait(calls: list, num_returns: int, timeout: float) -> tuple[list, list]:
        waits.append((num_returns, timeout))
        assert len(waits) < 9, "waits for those that do not fit"
        return calls[:1], calls[1:]

    cluster._ray.wait, cluster._ray.kill, cluster._on_note = wait, killed.append, notes.append
    assert cluster.about()["executor"] == "ray, 1 of 3 workers at first"
    assert waits == [(1, CHECK_SECONDS), (3, 0)] and "1 of 3 workers is ready" in notes[0]
    assert len(cluster._workers) == 1 and list(cluster._joining) == [alike, other]
    for call, worker in cluster._joining.items():
        assert cluster._joined(call, worker) == ([worker] if call is alike else [])
    assert killed == [cluster._joining[other]] and killed[0] not in cluster._workers and "left out" in notes[1]


@pytest.fixture
def closed_port() -> int:
    """A port where nothing listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def test_a_head_that_is_gone_is_noticed_even_if_workers_still_answer(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process a minute later; no call to Ray is made, as those to a lost head do not return."""
    monkeypatch.setattr("cascli.sweeps.ray_executor.HEAD_SECONDS", 0)
    cluster = cluster_of(Report(torch="1"))
    cluster._ray = SimpleNamespace(wait=lambda calls, **_: (calls, []))
    with socket.create_server(("127.0.0.1", 0)) as head:
        cluster._head, cluster._next_check = ("127.0.0.1", head.getsockname()[1]), 0.0
        cluster._ray.nodes = lambda: [{"Alive": True}]
        assert cluster._first_of(["call"], patient=True) == "call"
    del cluster._ray.nodes
    cluster._head, cluster._next_check = ("127.0.0.1", closed_port), 0.0
    with cluster, pytest.raises(RunError, match="--resume continues from what is saved"):
        cluster._first_of(["call"], patient=True)


@pytest.mark.parametrize("scheme", ["", "ray://", "RAY_ADDRESS"])
def test_an_address_where_nothing_listens_is_refused_at_once(
    scheme: str, closed_port: int, plan_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself tries for minutes."""
    fake = SimpleNamespace(init=lambda **_: pytest.fail("asks Ray"), exceptions=SimpleNamespace(RayError=Lost))
    monkeypatch.setattr("cascli.sweeps.ray_executor._ray", lambda: fake)
    address = f"{scheme}127.0.0.1:{closed_port}"
    if scheme == "RAY_ADDRESS":
        monkeypatch.setenv(scheme, f"127.0.0.1:{closed_port}")
        address = "auto"
    plan = load_plan(plan_file)
    with pytest.raises(RunError, match=f"no Ray cluster at '{address}': Connection refused"):
        RayExecutor(load_config(plan.pair), plan, task_of(plan, Path()), address=address)


def test_without_a_cluster_the_advice_is_about_our_own_flag(plan_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise ConnectionError("Please specify the one to connect to by setting `--address` flag")

    logs = SimpleNamespace(worker=SimpleNamespace())
    fake = SimpleNamespace(init=init, exceptions=SimpleNamespace(RayError=Lost), _private=logs)
    monkeypatch.setattr("cascli.sweeps.ray_executor._ray", lambda: fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    plan = load_plan(plan_file)
    with pytest.raises(RunError, match="give --ray-address HOST:PORT") as raised:
        RayExecutor(load_config(plan.pair), plan, task_of(plan, Path()), address="auto")
    assert "`--address`" not in str(raised.value)


@pytest.mark.parametrize(
    ("cores", "workers", "each", "count"),
    [
        ([2, 2], None, 2, 2),
        ([1, 4], None, 1, 2),
        ([1, 4], 3, 1, 3),
        ([1, 4], 5, 1, 5),
        ([2, 8], 4, 2, 4),
        ([4, 0, 4], 3, 2, 3),
        ([16], 3, 5, 3),
    ],
)
def test_workers_share_machines_of_any_sizes(cores: list[int], workers: int | None, each: int, count: int) -> None:
    executor = RayExecutor.__new__(RayExecutor)
    nodes = [{"Alive": True, "Resources": {"CPU": float(number)}} for number in cores]
    executor._ray = SimpleNamespace(nodes=lambda: nodes)
    assert executor._share(SweepPlan(strategies=["draft"]), workers) == ({"num_cpus": each}, count)
    with pytest.raises(UsageError, match=f"the cluster has {sum(cores)} CPUs"):
        executor._share(SweepPlan(strategies=["draft"]), sum(cores) + 1)


def test_a_worker_uses_the_requested_threads(plan_file: Path) -> None:
    before, plan = torch.get_num_threads(), load_plan(plan_file)
    try:
        actor = _Actor(load_config(plan.pair), plan, task_of(plan, Path()), True, before + 1)
        assert actor.about()["threads"] == str(before + 1)
    finally:
        torch.set_num_threads(before)


def test_strategies_that_cannot_run_are_asked_of_a_worker() -> None:
    assert cluster_of(Report(draft="why")).unable() == {"draft": "why"}
    lost = cluster_of(None)
    lost._reports = [{}]  # after it was ready
    assert lost.unable() == {}  # its work is given to others


@pytest.mark.slow
def test_placement_changes_no_answers_and_resume_continues(
    plan_file: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a sweep is made here and the rest on Ray, with one thread: their number may change the last bits."""
    here, there = tmp_path / "here", tmp_path / "there"
    threads, new_worker = [], RayExecutor._new_worker

    def started(executor: RayExecutor) -> Any:
        threads.append(executor._worker_args[-1])
        return new_worker(executor)

    def sweep(folder: Path, *more: str) -> None:
        done = CliRunner().invoke(app, ["sweep", str(plan_file), "-o", str(folder), "-q", "--threads", "1", *more])
        assert done.exit_code == 0, done.output

    monkeypatch.setattr(RayExecutor, "_new_worker", started)
    sweep(here)
    sweep(there, "--limit", "2")
    first = Records(there).file.read_text().splitlines()
    assert len(first) == 16 and not threads
    sweep(there, "--resume", "--executor", "ray", "--ray-address", address)
    assert threads == [1, 1]
    assert Records(there).file.read_text().splitlines()[:16] == first
    assert plain(Records(there)) == plain(Records(here)) and len(plain(Records(here))) == 32
    environment = Records(there).header().environment
    assert (environment["executor"], environment["threads"]) == ("ray, 2 workers", "1")


@pytest.mark.slow
def test_a_lost_worker_is_replaced(plan_file: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    import ray

    plan, budgets = load_plan(plan_file), Match(target_calls_per_token=[0.8], rules=["opt"], k=2)
    exam = task_of(plan.model_copy(update={"match": budgets}), plan_file.parent)
    work = list(units(plan, exam))
    notes: list[str] = []
    with RayExecutor(load_config(plan.pair), plan, exam, address=address, on_note=notes.append) as cluster:
        cluster.about()
        assert cluster.unable() == {}
        # What Ray prints of a process that is killed, on the stdout that may be JSON.
        ray._private.worker.print_to_stdstream({"lines": ["died"], "pid": "raylet", "is_err": False}, False)
        assert capsys.readouterr().out == ""
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
    assert set(notes) == {"a worker was lost; another does its work"}


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
