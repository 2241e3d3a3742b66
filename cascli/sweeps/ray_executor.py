"""Spread the work of a sweep with Ray over the GPUs or machines of a cluster.

Every worker holds the pair and does one prompt after another. Only this process writes records, so that files and
resumption are the same as for a sweep in one process. A lost worker is replaced, and its unit is done again.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Any, Self

from cascli.analysis.matching import Matched
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.config import PairConfig
from cascli.errors import RunError, UsageError
from cascli.notebook import OnProgress
from cascli.provenance import PREFIX
from cascli.sweeps.plan import Match, SweepPlan
from cascli.sweeps.records import Record
from cascli.sweeps.tasks import Task
from cascli.sweeps.units import Unit, batches, by_prompt
from cascli.sweeps.worker import Worker

MAX_TRIES = 3
"""Number of workers that may be lost on a unit before that is recorded as its error."""
START_SECONDS = 1800
"""How long a worker may take to fetch and load the pair."""
GRACE_SECONDS = 60
"""How long workers that are ready wait for the others before they start without them."""
CHECK_SECONDS = 10
"""Interval between checks that the cluster is still there."""
HEAD_SECONDS = 10
"""How long the cluster's head may be silent, as while it restarts; after 60 seconds Ray would end this process."""
CONNECT_SECONDS = 5
"""How long a machine may take to accept a connection."""


@dataclass
class _Assignment:
    """The work of one worker: the first batch of units is in progress; the others wait for the same worker."""

    worker: Any
    units: deque[Unit]


class RayExecutor:
    """A `Worker` per GPU of the cluster, or per machine if there are no GPUs."""

    def __init__(
        self,
        config: PairConfig,
        plan: SweepPlan,
        task: Task,
        *,
        address: str | None = None,
        workers: int | None = None,
        offline: bool | None = None,
        threads: int | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        """Join or start a cluster.

        Args:
            config: the pair, which every worker loads on its own machine.
            plan: the sweep.
            task: its prompts.
            address: address of a running cluster, `auto` for the one of this machine; None starts one here.
            workers: number of workers; by default one per GPU, or one per machine if there are no GPUs.
            offline: fail rather than download.
            threads: number of each worker's CPU threads; by default as many as its CPUs.
            on_note: called with what users should know of the workers, such as the loss of one.

        Raises:
            UsageError: Ray is not installed, a device is chosen by number, or the cluster is too small for `workers`.
            RunError: no cluster is found there, or it has no room for a worker.
        """
        if plan.device.startswith("cuda:") or any(model.device_map for model in config.models.values()):
            raise UsageError("a Ray worker has one GPU, its first: leave out cuda:N, and device_map in the pair.")
        self._ray = _ray()
        self._worker_args = (config, plan, task, offline, threads)
        self._on_note = on_note
        self._join(address)
        try:
            self._resources, count = self._share(plan, workers)
            self._workers = [self._new_worker() for _ in range(count)]
        except BaseException:
            self._ray.shutdown()
            raise
        self._joining: dict[Any, Any] = {}
        self._reports: list[dict[str, str]] = []
        self._last_error = ""
        self._next_check = 0.0

    def _join(self, address: str | None) -> None:
        here: dict[str, Any] = {} if address else {"include_dashboard": False}
        where = f"at '{address}'" if address else "on this machine"
        # Where nothing listens, Ray would try again for minutes.
        head = _host_and_port(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address or "")
        refusal = head and _refusal(*head)
        if refusal:
            raise RunError(f"no Ray cluster {where}: {refusal}")
        # Ray has no option for its own lines on stdout about every lost worker, which would precede JSON there.
        self._ray._private.worker._worker_logs_enabled = False
        try:
            # "local", because without an address Ray would join whatever cluster it finds.
            self._ray.init(address=address or "local", log_to_driver=False, logging_level="error", **here)
        except (ConnectionError, ValueError, RuntimeError, self._ray.exceptions.RayError) as error:
            if address == "auto" and isinstance(error, ConnectionError):
                error = RunError("none is running; start one with `ray start --head`, or give --ray-address HOST:PORT")
            raise RunError(f"no Ray cluster {where}: {error}") from None
        known = address if address and address.startswith(_CLIENT) else self._ray.get_runtime_context().gcs_address
        self._head, self._head_is_gone = _host_and_port(known), False

    def _share(self, plan: SweepPlan, workers: int | None) -> tuple[dict[str, float], int]:
        """Resources that a worker takes from its machine, and the number of workers to start."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        if gpus and plan.device != "cpu":
            if workers and workers > gpus:
                raise UsageError(f"--workers {workers}: the cluster has {gpus} GPUs, and each worker takes one.")
            return {"num_gpus": 1, "num_cpus": 1}, workers or gpus
        cores = [int(node["CPU"]) for node in nodes if node.get("CPU", 0) >= 1]
        if not cores:
            raise RunError("the Ray cluster has no CPU for a worker.")
        if workers is None:
            return {"num_cpus": min(cores)}, len(cores)  # one on each machine
        # The most that each of so many workers can have, on machines of any sizes.
        for each in range(max(cores), 0, -1):
            if sum(core // each for core in cores) >= workers:
                return {"num_cpus": each}, workers
        raise UsageError(f"--workers {workers}: the cluster has {sum(cores)} CPUs, and each worker takes one or more.")

    def _new_worker(self) -> Any:
        actor = self._ray.remote(_Actor).options(scheduling_strategy="SPREAD", **self._resources)
        return actor.remote(*self._worker_args)

    def __enter__(self) -> Self:
        """Return the executor, which has already joined the cluster."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the workers, and leave the cluster."""
        if self._head_is_gone:
            return
        for worker in (*self._workers, *self._joining.values()):
            self._ray.kill(worker)
        self._ray.shutdown()

    def start(self) -> None:
        """Wait until workers have loaded the pair; those that have not soon after the first one join later.

        Raises:
            RunError: a worker could not load the pair, none was ready in time, or the machines differ.
        """
        if self._reports:
            return
        calls = {worker.about.remote(): worker for worker in self._workers}
        ready = self._ended(list(calls), 1, START_SECONDS)
        if ready:
            ready = self._ended(list(calls), len(calls), GRACE_SECONDS)
        if not ready:
            raise RunError(
                f"no worker was ready within {START_SECONDS // 60} minutes: the cluster is busy, or the pair takes"
                " longer to fetch; try `cascli pull` on its machines."
            )
        try:
            reports = self._ray.get(ready)
        except self._ray.exceptions.RayError as error:
            raise RunError(f"a worker could not start: {_last_line(error)}") from None
        for other in reports[1:]:
            _check_alike(reports[0], other)
        self._joining = {call: worker for call, worker in calls.items() if call not in ready}
        self._workers, self._reports = [calls[call] for call in ready], reports
        if self._joining:
            self._note(
                f"{len(ready)} of {_workers(len(calls))} {'is' if len(ready) == 1 else 'are'} ready: the sweep starts,"
                " and the others join if the cluster has room for them"
            )

    def about(self) -> dict[str, str]:
        """Machines, versions and models of the workers that `start` found ready, and their number.

        Raises:
            RunError: as of `start`.
        """
        self.start()
        reports, wanted = self._reports, len(self._reports) + len(self._joining)
        number = _workers(wanted) if not self._joining else f"{len(reports)} of {_workers(wanted)} at first"
        # Machines may differ in what does not change answers, such as the processor.
        every = {key: ", ".join(dict.fromkeys(each[key] for each in reports if key in each)) for key in reports[0]}
        return {**every, "executor": f"ray, {number}"}

    def unable(self) -> dict[str, str]:
        """The strategies of the plan that cannot run with this pair, and why; empty if the worker asked is lost."""
        self.start()
        call = self._workers[0].unable.remote()
        self._first_of([call], patient=True)
        try:
            return dict(self._ray.get(call))
        except self._ray.exceptions.RayError:  # its work is given to others later
            return {}

    def rule_estimates(self, k: int, on_progress: OnProgress | None = None) -> list[RuleEstimate]:
        """Estimate every threshold rule at every alpha, on one worker and from its own runs."""
        return self._from_one_worker(self._workers[0].rule_estimates.remote(k))

    def matched(
        self, budgets: Match, temperatures: Sequence[float], on_progress: OnProgress | None = None
    ) -> list[Matched]:
        """Find the settings that meet the budgets, on one worker and from its own runs."""
        return self._from_one_worker(self._workers[0].matched.remote(budgets, temperatures))

    def _from_one_worker(self, call: Any) -> list[Any]:
        self._first_of([call], patient=True)
        try:
            return list(self._ray.get(call))
        except self._ray.exceptions.RayError as error:
            raise RunError(f"the worker judging the rules failed: {_last_line(error)}") from None

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """Yield one record per unit, in the order in which they finish; the records of a batch arrive together.

        Raises:
            RunError: all workers are lost, and none can be replaced.
        """
        size = self._worker_args[1].batch_size
        groups = by_prompt(units) if size == 1 else batches(units, size)
        waiting = deque(deque(group) for group in groups)
        idle, joining = list(self._workers), self._joining
        errors = self._ray.exceptions
        lost = (errors.RayActorError, errors.OutOfMemoryError, errors.NodeDiedError, errors.WorkerCrashedError)
        in_progress: dict[Any, _Assignment] = {}
        tries: Counter[tuple[str, str]] = Counter()
        while waiting or in_progress:
            while waiting and idle:
                self._next(_Assignment(idle.pop(), waiting.popleft()), in_progress)
            ready = self._first_of([*in_progress, *joining], patient=bool(in_progress))
            if ready in joining:
                idle += self._joined(ready, joining.pop(ready))
                continue
            assignment = in_progress.pop(ready)
            batch = [assignment.units.popleft() for _ in range(min(size, len(assignment.units)))]
            try:
                records = self._ray.get(ready)
            except lost as error:
                if not self._is_alive():  # without its head, Ray would wait for the new worker's start
                    raise self._all_lost() from None
                self._note("a worker was lost; another does its work")
                joining |= self._replaced(assignment.worker)
                tries.update(unit.key for unit in batch)
                yield from (_lost(unit, error) for unit in batch if tries[unit.key] == MAX_TRIES)
                assignment.units.extendleft(unit for unit in reversed(batch) if tries[unit.key] < MAX_TRIES)
                waiting.extendleft([assignment.units] if assignment.units else [])
                continue
            except errors.RayError as error:
                records = [_failed(unit, _last_line(error)) for unit in batch]
            if assignment.units:
                self._next(assignment, in_progress)
            else:
                idle.append(assignment.worker)
            yield from records

    def _next(self, assignment: _Assignment, in_progress: dict[Any, _Assignment]) -> None:
        """Start a worker on the first batch of its units."""
        batch = list(islice(assignment.units, self._worker_args[1].batch_size))
        in_progress[assignment.worker.do.remote(batch)] = assignment

    def _first_of(self, calls: list[Any], *, patient: bool) -> Any:
        """The first call that ends; if no unit is in progress, wait for as long as a start may take."""
        ready = self._ended(calls, 1, math.inf if patient else START_SECONDS) if calls else []
        if not ready:
            raise self._all_lost()
        return ready[0]

    def _ended(self, calls: list[Any], count: int, seconds: float) -> list[Any]:
        """The calls that have ended, as soon as `count` have or the time is over.

        Raises:
            RunError: the cluster is gone, whose calls do not always end.
        """
        end = time.monotonic() + seconds
        while True:
            # Also if calls do end: those to workers that are still there do, until Ray ends this process.
            if time.monotonic() >= self._next_check:
                if not self._is_alive():
                    raise self._all_lost()
                self._next_check = time.monotonic() + CHECK_SECONDS
            left = max(end - time.monotonic(), 0)
            ready, _ = self._ray.wait(calls, num_returns=count, timeout=min(left, CHECK_SECONDS))
            if len(ready) >= count or left <= CHECK_SECONDS:
                return list(ready)

    def _is_alive(self) -> bool:
        """Whether the cluster's head answers and has a machine; asked of the head only if it accepts connections.

        A call to a head that is gone does not return, and Ray ends this process meanwhile.
        """
        end = time.monotonic() + HEAD_SECONDS
        while self._head and _refusal(*self._head):
            if time.monotonic() >= end:
                self._head_is_gone = True
                return False
            time.sleep(1)
        return any(node["Alive"] for node in self._ray.nodes())

    def _all_lost(self) -> RunError:
        what = "all workers of the sweep were lost; --resume continues from what is saved."
        return RunError(f"{what} {self._last_error}".strip())

    def _note(self, text: str) -> None:
        if self._on_note is not None:
            self._on_note(text)

    def _replaced(self, worker: Any) -> dict[Any, Any]:
        """Start a new worker for a lost one, keyed by the call that ends when it is ready; the others keep working."""
        self._ray.kill(worker)
        self._workers.remove(worker)
        replacement = self._new_worker()
        return {replacement.about.remote(): replacement}

    def _joined(self, call: Any, worker: Any) -> list[Any]:
        """The worker in a list if it could start like the others, else an empty list: there is one worker fewer."""
        try:
            _check_alike(self._reports[0], self._ray.get(call))
        except self._ray.exceptions.RayError as error:
            self._last_error = _last_line(error)
            return []
        except RunError as error:
            self._last_error = str(error)
            self._note(f"a worker is left out: {error}")
            self._ray.kill(worker)
            return []
        self._workers.append(worker)
        return [worker]


class _Actor:
    """A `Worker` that loads its pair on the machine where it is started."""

    def __init__(
        self, config: PairConfig, plan: SweepPlan, task: Task, offline: bool | None, threads: int | None
    ) -> None:
        import torch

        from cascli.models.load import load_pair

        if threads is not None:
            torch.set_num_threads(threads)
        pair = load_pair(config, device=plan.chosen_device, dtype=plan.chosen_dtype, offline=offline)
        self._worker = Worker(pair, plan, task)

    def about(self) -> dict[str, str]:
        return self._worker.about()

    def unable(self) -> dict[str, str]:
        return self._worker.unable()

    def rule_estimates(self, k: int) -> list[RuleEstimate]:
        return self._worker.rule_estimates(k)

    def matched(self, budgets: Match, temperatures: Sequence[float]) -> list[Matched]:
        return self._worker.matched(budgets, temperatures)

    def do(self, units: list[Unit]) -> list[Record]:
        try:
            return list(self._worker.run(units))
        except RunError:  # the device is lost to this process: exit, so that the worker is replaced
            os._exit(1)


def _check_alike(one: dict[str, str], other: dict[str, str]) -> None:
    """Reject workers that would not write the same answers: `auto` picks the precision by the machine."""
    plugins = sorted(key for key in {*one, *other} if key.startswith(PREFIX))
    for key in ("draft", "target", "cascli", "torch", "transformers", *plugins):
        if one.get(key) != other.get(key):  # a pair may have no draft model
            raise RunError(
                f"the cluster's machines differ: {key} is {one.get(key)} on one and {other.get(key)} on another."
            )


_CLIENT = "ray://"
"""How the address of a cluster begins that is joined from outside it."""


def _host_and_port(address: str) -> tuple[str, int] | None:
    """The parts of `HOST:PORT`, also after `ray://`; None for any other address, which Ray resolves or rejects."""
    host, _, port = address.removeprefix(_CLIENT).rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdecimal() else None


def _refusal(host: str, port: int) -> str | None:
    """Why a machine accepts no connection there; None if it does."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    except (OverflowError, UnicodeError) as error:  # no port or host has such a name
        return str(error)
    return None


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _lost(unit: Unit, error: Exception) -> Record:
    what = f"its worker was lost {MAX_TRIES} times: {_last_line(error)}"
    return _failed(unit, what)


def _failed(unit: Unit, error: str) -> Record:
    return Record(cell=unit.cell, problem=unit.problem.id, category=unit.problem.category, error=error)


def _last_line(error: Exception) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UsageError("--executor ray needs Ray: pip install 'cascli[ray]'") from None
    return ray
