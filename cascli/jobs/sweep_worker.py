"""One process of a sweep: a loaded pair that turns units of work into records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from cascli.chat import Conversation, encode
from cascli.engine import Request, environment
from cascli.errors import RunError
from cascli.jobs.generate import decode
from cascli.jobs.likelihood import log_likelihood
from cascli.jobs.replay import Seen, judge, match, record
from cascli.models.pair import Pair
from cascli.sampling import Sampling
from cascli.strategies import parse
from cascli.sweep.judged import Judged, Matched
from cascli.sweep.plan import BASELINE, Cell, Match, SweepPlan
from cascli.sweep.records import Record
from cascli.sweep.tasks import Exam, Problem
from cascli.sweep.units import Unit
from cascli.trace import Run

Tell = Callable[[str, int, int], None]


class Worker:
    """Answers and judges. What it makes of a unit depends on the unit alone, not on where or when it does it."""

    def __init__(self, pair: Pair, plan: SweepPlan, exam: Exam) -> None:
        self._pair, self._plan, self._exam = pair, plan, exam
        self._greedy: dict[str, Sequence[int]] = {}

    def about(self) -> dict[str, str]:
        """Machine, versions, and the two models as they were loaded."""
        models = {role: getattr(self._pair, role) for role in ("draft", "target")}
        loaded = {role: f"{model.source} {model.dtype}" for role, model in models.items()}
        return environment(self._pair.device) | loaded

    def judged(self, k: int, tell: Tell | None = None) -> list[Judged]:
        """Every rule at every alpha and temperature, judged along one speculative run a prompt."""
        return [each for t in self._plan.temperatures for each in judge(self._seen(k, t, tell), k, t)]

    def matched(self, wanted: Match, tell: Tell | None = None) -> list[Matched]:
        """For each temperature, rule and budget the alpha that comes nearest, likewise."""
        return [each for t in self._plan.temperatures for each in match(self._seen(wanted.k, t, tell), wanted, t)]

    def _seen(self, k: int, temperature: float, tell: Tell | None) -> Seen:
        return record(self._pair, self._plan, self._exam, k, temperature, tell)

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """One record a unit, in their order."""
        return map(self.do, units)

    def do(self, unit: Unit) -> Record:
        """Answer and judge; what goes wrong is recorded as the record's error."""
        cell, problem = unit
        try:
            run = answer(self._pair, self._plan, cell, problem)
            if cell.strategy == BASELINE and cell.temperature == 0:
                self._greedy[problem.id] = run.token_ids
            target = self._reference(problem) if self._exam.needs_target else None
            quality = self._exam.judge(problem, run.text, run.token_ids, target)
            likelihood = self._likelihood(problem, run) if self._plan.likelihood else None
        except torch.AcceleratorError as error:
            raise RunError(f"the device failed, and with it this process: {error}") from None
        except Exception as error:  # whatever an answer or its judgement does, the other answers go on
            return Record(cell=cell, problem=problem.id, error=f"{type(error).__name__}: {error}")
        return _record(cell, problem, run, quality, likelihood)

    def _likelihood(self, problem: Problem, run: Run) -> float | None:
        return log_likelihood(self._pair.target, _ids(self._pair, self._plan, problem), run.token_ids)

    def _reference(self, problem: Problem) -> Sequence[int]:
        """The target's own greedy answer, made once a prompt."""
        if problem.id not in self._greedy:
            cell = Cell(strategy=BASELINE, temperature=0.0, seed=0)
            self._greedy[problem.id] = answer(self._pair, self._plan, cell, problem).token_ids
        return self._greedy[problem.id]


def answer(pair: Pair, plan: SweepPlan, cell: Cell, problem: Problem) -> Run:
    """One run of the grid. Its random numbers depend on the seed and the problem, so all strategies share them."""
    request = Request(
        prompt_ids=_ids(pair, plan, problem),
        sampling=Sampling(cell.temperature, plan.top_k, plan.top_p),
        max_new_tokens=plan.max_new_tokens,
        seed=cell.seed,
        prompt_id=problem.id,
        stop=plan.stop,
        prompt=problem.prompt,
        system=plan.system,
        raw=plan.raw,
    )
    return decode(pair, parse(cell.strategy), request)


def _ids(pair: Pair, plan: SweepPlan, problem: Problem) -> list[int]:
    return encode(pair, problem.prompt, Conversation(plan.system), raw=plan.raw)


def _record(cell: Cell, problem: Problem, run: Run, quality: float, likelihood: float | None) -> Record:
    m = run.metrics
    return Record(
        cell=cell,
        problem=problem.id,
        quality=quality,
        text=run.text,
        token_ids=run.token_ids,
        finish_reason=run.finish_reason,
        seconds=m.seconds.total,
        target_calls=m.target_calls,
        draft_calls=m.draft_calls,
        drafted=m.num_draft_tokens,
        accepted=m.num_accepted_draft_tokens,
        tested=m.num_tested_draft_tokens,
        deferral_rate=m.deferral_rate,
        mean_tv=m.mean_tv_to_target,
        log_likelihood=likelihood,
        flops=m.total_flops,
    )
