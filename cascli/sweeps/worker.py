"""One process of a sweep: a loaded pair that turns units of work into records."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch

from cascli.analysis.distances import total
from cascli.analysis.matching import Matched
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.analysis.speculation_profile import histogram
from cascli.analysis.statistics import weighted_mean
from cascli.chat import Conversation, encode
from cascli.engine import Request, check_models, environment
from cascli.errors import RunError, UsageError
from cascli.jobs.generate import decode, warm_up_tokens
from cascli.jobs.match import fitting
from cascli.jobs.recording import record
from cascli.jobs.rule_curves import match, rule_estimates, with_dial
from cascli.models.batch.lanes import Lanes
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.sampling.parameters import Sampling
from cascli.settings import TARGET, Resolved
from cascli.strategies import parse
from cascli.sweeps.likelihood import log_likelihood
from cascli.sweeps.plan import Cell, Match, SweepPlan
from cascli.sweeps.records import Record, drafts_ahead
from cascli.sweeps.tasks import Example, Task
from cascli.sweeps.units import Unit, by_cell
from cascli.trace import Run


class Worker:
    """Answers prompts and judges the answers. A record depends only on its unit, not on where or when it is made."""

    def __init__(self, pair: Pair, plan: SweepPlan, task: Task) -> None:
        # No step times of this machine: they would make a stop draft differently here than elsewhere.
        self._pair, self._plan, self._task = replace(pair, steps=None), plan, task
        self._greedy: dict[str, Sequence[int]] = {}
        self._warm: set[str] = set()
        self._lanes: Lanes | None = None

    def about(self) -> dict[str, str]:
        """Machine, versions also of the plan's plug-ins, and both models as they were loaded."""
        loaded = {str(role): f"{model.source} {model.dtype}" for role, model in self._pair.models.items()}
        strategies = map(parse, self._plan.specs())
        return environment(self._pair.device, *strategies) | loaded | {"target device": str(self._pair.device)}

    def unable(self) -> dict[str, str]:
        """The strategies of the plan that cannot run with this pair, and why."""
        reasons = {}
        for spec in self._plan.specs():
            try:
                check_models(self._pair, parse(spec))
            except (RunError, UsageError) as error:
                reasons[spec] = str(error)
        return reasons

    def rule_estimates(self, k: int, on_progress: OnProgress | None = None) -> list[RuleEstimate]:
        """Estimate every threshold rule at every alpha and temperature, along one speculative run per prompt."""
        prompts = [self._fitted(Prompt(problem.turns, problem.id)) for problem in self._task.problems]
        return [
            each
            for t in self._plan.temperatures
            for each in rule_estimates(record(self._pair, prompts, self._settings(t), k, on_progress=on_progress), k, t)
        ]

    def matched(
        self, budgets: Match, temperatures: Sequence[float], on_progress: OnProgress | None = None
    ) -> list[Matched]:
        """Find the nearest setting for each of these temperatures, rule and budget, on prompts not measured."""
        list(with_dial(budgets.rules))  # raise before hours are spent
        matches = []
        for t in temperatures:
            settings = self._settings(t)
            prompts = fitting(self._pair, [*map(self._fitted, self._task.calibration)], settings)
            recorded = record(self._pair, prompts, settings, budgets.k, on_progress=on_progress)
            matches += match(recorded, budgets.target_calls_per_token, budgets.k, t, budgets.rules)
        return matches

    def _fitted(self, prompt: Prompt) -> Prompt:
        """Cut a prompt's first turn as for the sweep's own answers; later turns stay whole, as the answers differ."""
        first = _cut(self._pair, self._plan, prompt.turns[0], Conversation(self._plan.system))
        return replace(prompt, turns=(first, *prompt.turns[1:]))

    def _settings(self, temperature: float) -> Resolved:
        plan = self._plan
        return Resolved(
            max_new_tokens=plan.max_new_tokens,
            temperature=temperature,
            top_k=plan.top_k,
            top_p=plan.top_p,
            seed=plan.seeds[0],
            system=plan.system,
            raw=plan.raw,
            stop=plan.stop,
        )

    def run(self, units: Iterable[Unit]) -> Iterator[Record]:
        """Yield one record per unit as soon as it is done: one unit after the other, or in concurrent batches."""
        if self._plan.batch_size == 1:
            yield from map(self.do, units)
            return
        if self._lanes is None:
            size = min(self._plan.batch_size, len(self._task.problems))  # each lane has its own caches
            self._lanes = Lanes(self._pair, max(size, 1), keep_prompts=True)
        for cell in by_cell(units):
            with suppress(Exception):  # what fails here fails again below, and is recorded
                self._warm_up(cell[0].cell, cell[0].problem, self._pair)
            for ended in self._lanes.run(partial(self._do, unit) for unit in cell):
                yield ended.result

    def do(self, unit: Unit) -> Record:
        """Answer and judge a unit; a failure is stored as the record's error."""
        return self._do(unit, self._pair)

    def _do(self, unit: Unit, pair: Pair) -> Record:
        """Like `do`, with the models of `pair`; concurrent answers each have a pair of their own."""
        cell, problem = unit.cell, unit.problem
        try:
            self._warm_up(cell, problem, pair)
            runs = answers(pair, self._plan, cell, problem)
            token_ids = _joined(runs)
            if cell.strategy == TARGET and cell.temperature == 0:
                self._greedy[problem.id] = token_ids
            target = self._reference(problem, pair) if self._task.needs_target else None
            quality = self._task.score(problem, runs[-1].text, token_ids, target)
            counts = self._task.counts(problem, runs[-1].text)
            likelihood = self._likelihood(runs, pair) if self._plan.likelihood else None
        except torch.AcceleratorError as error:
            raise RunError(f"the device failed, which ends this process: {error}") from None
        except Exception as error:  # however an answer or its judgement fails, the others go on
            return Record(
                cell=cell, problem=problem.id, category=problem.category, error=f"{type(error).__name__}: {error}"
            )
        return record_of(cell, problem, runs, quality, likelihood).model_copy(update={"counts": counts})

    def _warm_up(self, cell: Cell, problem: Example, pair: Pair) -> None:
        """Decode a few uncounted tokens before a strategy's first answer in this process, which would be slower."""
        if cell.strategy not in self._warm:
            self._warm.add(cell.strategy)
            strategy = parse(cell.strategy)
            tokens = warm_up_tokens(strategy)
            first = Example(problem.id, problem.prompt)
            answers(pair, self._plan.model_copy(update={"max_new_tokens": tokens}), cell, first)

    def _likelihood(self, runs: Sequence[Run], pair: Pair) -> float | None:
        """Mean over the tokens of all turns."""
        parts = [(run, log_likelihood(pair.target, run.prompt_token_ids or [], run.token_ids)) for run in runs]
        known = [(value * len(run.token_ids), len(run.token_ids)) for run, value in parts if value is not None]
        return sum(value for value, _ in known) / sum(count for _, count in known) if known else None

    def _reference(self, problem: Example, pair: Pair) -> Sequence[int]:
        """The target's own greedy answer, computed once per prompt."""
        if problem.id not in self._greedy:
            cell = Cell(strategy=TARGET, temperature=0.0, seed=0)
            self._greedy[problem.id] = _joined(answers(pair, self._plan, cell, problem))
        return self._greedy[problem.id]


def answers(pair: Pair, plan: SweepPlan, cell: Cell, problem: Example) -> list[Run]:
    """Answer every turn of a problem for one cell of the grid, each with the answers so far as its context.

    Random numbers depend on the seed, the problem and the turn, so all strategies share them.
    """
    strategy, runs, conversation = parse(cell.strategy), [], Conversation(plan.system)
    for number, full_turn in enumerate(problem.turns):
        turn = _cut(pair, plan, full_turn, conversation)
        request = Request(
            prompt_ids=encode(pair, turn, conversation, raw=plan.raw),
            sampling=Sampling(cell.temperature, plan.top_k, plan.top_p),
            max_new_tokens=plan.max_new_tokens,
            seed=cell.seed,
            prompt_id=problem.id,
            turn=number,
            stop=plan.stop,
            prompt=turn,
            system=plan.system,
            raw=plan.raw,
        )
        runs.append(decode(pair, strategy, request))
        conversation = conversation.with_answer(pair, turn, runs[-1])
    return runs


def _cut(pair: Pair, plan: SweepPlan, turn: str, conversation: Conversation) -> str:
    """Return the turn, or as much of its beginning as fits within the plan's `max_prompt_tokens`.

    Raises:
        UsageError: no part of it fits.
    """
    max_tokens = plan.max_prompt_tokens
    if max_tokens is None:
        return turn

    def length(characters: int) -> int:
        return len(encode(pair, turn[:characters], conversation, raw=plan.raw))

    if length(len(turn)) <= max_tokens:
        return turn
    kept = bisect_right(range(1, len(turn)), max_tokens, key=length)
    if not kept:
        raise UsageError(f"max_prompt_tokens: {max_tokens} leave no room for the turn after what precedes it")
    return turn[:kept]


def _joined(runs: Sequence[Run]) -> list[int]:
    return [token for run in runs for token in run.token_ids]


def record_of(
    cell: Cell, problem: Example, runs: Sequence[Run], quality: float | None, likelihood: float | None
) -> Record:
    """Make the record of the answers to a problem's turns."""
    metrics = [run.metrics for run in runs]
    tested = [m.num_tested_draft_tokens for m in metrics]
    flops = [m.total_flops for m in metrics]
    ahead = drafts_ahead(cell.strategy)
    return Record(
        cell=cell,
        problem=problem.id,
        category=problem.category,
        quality=quality,
        text="\n\n".join(run.text for run in runs),
        token_ids=_joined(runs),
        finish_reason=runs[-1].finish_reason,
        seconds=sum(m.seconds.total for m in metrics),
        batch_size=runs[0].batch_size,
        target_calls=sum(m.target_calls for m in metrics),
        draft_calls=sum(m.draft_calls for m in metrics),
        drafted=sum(m.num_draft_tokens for m in metrics),
        accepted=sum(m.num_accepted_draft_tokens for m in metrics),
        tested=None if None in tested else sum(each for each in tested if each is not None),
        rounds=sum(m.num_rounds for m in metrics) if ahead else 0,
        acceptance_histogram=histogram(metrics) if ahead else None,
        turns=len(runs),
        cut=sum(run.finish_reason == "length" for run in runs),
        looped=sum(m.looped_tokens or 0 for m in metrics),
        distances=total(m.distances for m in metrics),
        deferral_rate=weighted_mean([m.deferral_rate for m in metrics], _weights(runs)),
        mean_tv=weighted_mean([m.mean_tv_to_target for m in metrics], [len(run.token_ids) for run in runs]),
        log_likelihood=likelihood,
        flops=None if None in flops else sum(each for each in flops if each is not None),
    )


def _weights(runs: Sequence[Run]) -> list[int]:
    """Tokens of each answer, or 1 if the strategy decides once per answer."""
    return [1 if run.handover else len(run.token_ids) for run in runs]
