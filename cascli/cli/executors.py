"""Where a sweep runs: in this process, or on the workers of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from cascli.cli import common

if TYPE_CHECKING:
    from cascli.config import PairConfig
    from cascli.sweeps.plan import SweepPlan
    from cascli.sweeps.run import Executor
    from cascli.sweeps.tasks import Task


class ExecutorKind(StrEnum):
    """What runs a sweep."""

    LOCAL = "local"
    RAY = "ray"


@contextmanager
def executor_of(
    kind: ExecutorKind, plan: SweepPlan, task: Task, inputs: common.Plan, address: str | None, workers: int | None
) -> Iterator[Executor]:
    """A worker in this process, or a Ray cluster of them."""
    if kind is ExecutorKind.LOCAL:
        pair = inputs.load_as(plan.chosen_device, plan.chosen_dtype)
        from cascli.sweeps.worker import Worker  # imports torch: only now, since loading shows that

        yield Worker(pair, plan, task)
        return
    from cascli.cli.progress import Progress
    from cascli.sweeps.ray_executor import RayExecutor

    with RayExecutor(
        _config(inputs),
        plan,
        task,
        address=address,
        workers=workers,
        offline=inputs.settings.offline,
        threads=inputs.settings.threads,
        on_note=inputs.screen.note,
    ) as cluster:
        with Progress(inputs.screen, f"loading {inputs.config.name} on the workers"):
            cluster.start()
        yield cluster


def _config(inputs: common.Plan) -> PairConfig:
    """The pair's file with the flags' and the environment's settings for GPU steps; it is sent to other machines."""
    steps = {key: getattr(inputs.settings, key) for key in ("cuda_graphs", "compile")}
    defaults = inputs.config.defaults.model_copy(update=steps)
    return inputs.config.model_copy(update={"defaults": defaults})
