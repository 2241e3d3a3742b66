"""Run the grid of a sweep, prompt by prompt, and keep every result as soon as it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cascli.chat import Conversation, encode
from cascli.engine import Request
from cascli.errors import CascliError
from cascli.jobs.generate import decode
from cascli.models.pair import Pair
from cascli.sampling import Sampling
from cascli.strategies import parse
from cascli.sweep.plan import BASELINE, Cell, SweepPlan
from cascli.sweep.records import Record, Records
from cascli.sweep.tasks import Exam, Problem
from cascli.trace import Run

Tell = Callable[[str, int, int], None]


class Unit(NamedTuple):
    """One cell and one prompt: the unit of work."""

    cell: Cell
    problem: Problem

    @property
    def key(self) -> tuple[str, str]:
        """As that of the record that it becomes."""
        return self.cell.key, self.problem.id


def units(plan: SweepPlan, exam: Exam) -> Iterator[Unit]:
    """All work, strategies side by side on each prompt, so that a noisy machine is noisy for all of them."""
    cells = plan.cells()
    blocks = list(dict.fromkeys((cell.repeat, cell.temperature, cell.seed) for cell in cells))
    for repeat, temperature, seed in blocks:
        here = [cell for cell in cells if (cell.repeat, cell.temperature, cell.seed) == (repeat, temperature, seed)]
        for problem in exam.problems:
            for cell in here:
                yield Unit(cell, problem)


def sweep(
    pair: Pair,
    plan: SweepPlan,
    exam: Exam,
    records: Records,
    done: dict[tuple[str, str], Record],
    tell: Tell | None = None,
) -> None:
    """Do what is not done yet; an answer that fails is recorded with its error, and the rest goes on.

    Args:
        pair: loaded once for all cells.
        plan: the grid.
        exam: the prompts and the judge.
        records: where results are kept.
        done: what was there already; completed in place.
        tell: told what is being done, how many results there are, and of how many.
    """
    work = list(units(plan, exam))
    greedy = _Reference(pair, plan, done)
    for unit in work:
        if unit.key in done:
            continue
        if tell is not None:
            tell(f"{unit.problem.id} {unit.cell.strategy}", len(done), len(work))
        record = _record(pair, plan, exam, unit, greedy)
        records.add(record)
        done[unit.key] = record


def _record(pair: Pair, plan: SweepPlan, exam: Exam, unit: Unit, greedy: _Reference) -> Record:
    try:
        run = answer(pair, plan, unit.cell, unit.problem)
        target = greedy.of(unit.problem) if exam.needs_target else None
        quality = exam.judge(unit.problem, run.text, run.token_ids, target)
    except (CascliError, RuntimeError, ValueError) as error:
        return Record(cell=unit.cell, problem=unit.problem.id, error=f"{type(error).__name__}: {error}")
    m = run.metrics
    return Record(
        cell=unit.cell,
        problem=unit.problem.id,
        quality=quality,
        text=run.text,
        token_ids=run.token_ids,
        finish_reason=run.finish_reason,
        seconds=m.seconds.total,
        target_calls=m.target_calls,
        draft_calls=m.draft_calls,
        drafted=m.num_draft_tokens,
        accepted=m.num_accepted_draft_tokens,
        deferral_rate=m.deferral_rate,
        mean_tv=m.mean_tv_to_target,
        flops=m.total_flops,
    )


def answer(pair: Pair, plan: SweepPlan, cell: Cell, problem: Problem) -> Run:
    """One run of the grid. Its random numbers depend on the seed alone, so all strategies share them."""
    request = Request(
        prompt_ids=encode(pair, problem.prompt, Conversation(plan.system), raw=plan.raw),
        sampling=Sampling(cell.temperature, plan.top_k, plan.top_p),
        max_new_tokens=plan.max_new_tokens,
        seed=cell.seed,
        stop=plan.stop,
        prompt=problem.prompt,
    )
    return decode(pair, parse(cell.strategy), request)


class _Reference:
    """The target's own greedy answers: those of the grid where it has them, else made once a prompt."""

    def __init__(self, pair: Pair, plan: SweepPlan, done: Mapping[tuple[str, str], Record]) -> None:
        self._pair, self._plan, self._done = pair, plan, done
        self._known: dict[str, Sequence[int]] = {}

    def of(self, problem: Problem) -> Sequence[int]:
        """Token ids of the target's greedy answer."""
        if problem.id not in self._known:
            self._known[problem.id] = self._find(problem)
        return self._known[problem.id]

    def _find(self, problem: Problem) -> Sequence[int]:
        greedy = Cell(strategy=BASELINE, temperature=0.0, seed=0)
        for seed in self._plan.seeds:
            record = self._done.get((greedy.model_copy(update={"seed": seed}).key, problem.id))
            if record is not None and record.error is None:
                return record.token_ids
        return answer(self._pair, self._plan, greedy, problem).token_ids
