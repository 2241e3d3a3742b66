"""Choose what to decode with: record answers once, predict every strategy along them, and measure the best."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from cascli import notebook
from cascli.analysis import advice as choosing
from cascli.analysis.advice import Advice, Candidate, Compared, Confirmed, Levers, Quality, Tolerance
from cascli.analysis.answer_costs import Ratio, paired
from cascli.analysis.comparison import Comparison, Row
from cascli.analysis.equivalents import Use, use
from cascli.analysis.profile import Profile
from cascli.analysis.replay import Machine
from cascli.analysis.statistics import UNSEEN, UNSEEN_RATE, median
from cascli.chat import Conversation
from cascli.engine import environment
from cascli.jobs.batch import check_prompts
from cascli.jobs.candidates import Answers
from cascli.jobs.compare import Repeats, counting
from cascli.jobs.generate import conversations, converse, decode, request_for, request_of_turn, sampling_of, settings_of
from cascli.jobs.profile import BLOCKS, blocks_for, profile
from cascli.jobs.recording import Seen, record
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.prompts import Prompt
from cascli.settings import TARGET, Resolved, with_whole_answers
from cascli.strategies import Strategy, parse
from cascli.trace import Metrics, Run, by_strategy, now, prompts_of

MAX_PROMPTS = 12
"""Most prompts to record, or to use where no limit is given; spread evenly over all of them."""
MIN_PROMPTS_TO_SPLIT = 4
"""With at least this many prompts, those measured are not the ones that predictions are based on."""
RECORDED_K = 4
"""Block length of the recorded answers; predictions for other lengths do not depend on it."""
PILOT_TOKENS = 32
"""Length of the short runs that measure the time spent outside the models."""
REPEATS = 3
"""Repeats of the timed steps and of the short runs."""
Score = Callable[[Prompt, Run, Run], float]
"""Scores an answer between 0 and 1, given the prompt, the answer, and the target's answer to the same prompt."""


def advise(
    pair: Pair,
    prompts: str | Prompt | Sequence[str | Prompt],
    *,
    lossless: bool = False,
    max_tv: float | None = None,
    max_quality_loss: float | None = None,
    score: Score | None = None,
    max_new_tokens: int | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: str | Sequence[str] | None = None,
    system: str | None = None,
    raw: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Advice:
    """Find the best strategy, drafter, block length, stop and rule for these prompts on this machine.

    Values that are not given come from the pair's file, then from the built-in defaults, as in `generate`.

    Args:
        pair: the loaded pair, used for everything.
        prompts: texts or conversations, all of which are used: half of them, at most 12, are recorded and the rest
            measured; fewer than 4 are both recorded and measured.
        lossless: accept no loss; the default if no tolerance is given.
        max_tv: tolerated mean total variation to the target.
        max_quality_loss: tolerated difference below the target's mean score.
        score: scores an answer, given the target's.
        max_new_tokens: longest answer, in tokens; at least 256 by default for several prompts.
        temperature: 0 is greedy.
        top_k: keep the most likely tokens; 0 is off.
        top_p: keep the smallest set of this mass; 1 is off.
        seed: seed of the random numbers.
        stop: strings that end an answer.
        system: system prompt for the chat template.
        raw: skip the chat template.
        on_progress: called with progress updates.

    Raises:
        UsageError: a value out of range, a contradictory tolerance, no prompt, or one that is too long.
        RunError: out of memory.
    """
    tolerance = Tolerance.of(
        lossless=lossless, max_tv=max_tv, max_quality_loss=max_quality_loss, scored=score is not None
    )
    settings = settings_of(
        pair,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        system=system,
        raw=raw,
    )
    all_prompts = conversations(prompts)
    if len(all_prompts) > 1 and max_new_tokens is None:
        settings = with_whole_answers(settings)
    bars = notebook.bars()
    with bars or nullcontext():
        return Advising(pair, all_prompts, settings, tolerance, score, on_progress or bars or None).advice()


def spread(prompts: Sequence[Prompt], most: int = MAX_PROMPTS) -> list[Prompt]:
    """Return at most `most` prompts, spread evenly over all of them."""
    n = min(len(prompts), most)
    return [prompts[i * len(prompts) // n] for i in range(n)]


def halves(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Split prompts into those to record, at most 12, and the rest to measure; fewer than 4 serve as both."""
    if len(prompts) < MIN_PROMPTS_TO_SPLIT:
        return list(prompts), list(prompts)
    recorded = spread(prompts, min(len(prompts) // 2, MAX_PROMPTS))
    return recorded, [prompt for prompt in prompts if prompt not in recorded]


class Measured(NamedTuple):
    """The runs that confirm the predictions."""

    runs: dict[str, list[list[Run]]]
    """By strategy and prompt: the runs of all turns."""
    lossless: frozenset[str]
    """The lossless strategies: except for chance, their answers are as long as the target's."""

    def faster(self, one: str, other: str) -> Compared:
        """How much faster the first strategy is: per token, or per answer where that decides.

        The time per answer decides if one strategy has loss and either the answers clearly differ in length or the two
        ratios disagree about which is faster: a rule that writes longer answers gains less than its speed per token
        suggests. Answers cut at the limit count with the length they have, so that rules that loop are caught.
        """
        by_token, by_answer = self.tokens(one, other), self.answers(one, other)
        if {one, other} <= self.lossless:
            return Compared(by_token)
        differ = choosing.clearly(self.length(one, other)) or choosing.clearly(self.length(other, one))
        decides = differ or (by_token.of_means > 1) != (by_answer.of_means > 1)
        return Compared(by_answer, True) if decides else Compared(by_token)

    def tokens(self, one: str, other: str) -> Ratio:
        """The second strategy's time for the same number of tokens over the first one's, paired by prompt."""
        times = [
            [(_seconds(theirs) * _tokens(ours) / _tokens(theirs), _seconds(ours))]
            for ours, theirs in self._pairs(one, other)
        ]
        return paired(times, UNSEEN_RATE if {one, other} <= self.lossless else UNSEEN)

    def answers(self, one: str, other: str) -> Ratio:
        """The second strategy's time per answer over the first one's."""
        return paired([[(_seconds(theirs), _seconds(ours))] for ours, theirs in self._pairs(one, other)])

    def length(self, one: str, other: str) -> Ratio:
        """The first strategy's tokens per answer over the second one's."""
        return paired([[(_tokens(ours), _tokens(theirs))] for ours, theirs in self._pairs(one, other)])

    def tokens_per_round(self, strategy: str) -> float | None:
        """Tokens written per round, counted as in predictions; None for a strategy that drafted nothing."""
        runs = [run for turns in self.runs[strategy] for run in turns]
        if not any(run.metrics.num_draft_tokens for run in runs):
            return None
        return sum(len(run.token_ids) for run in runs) / sum(run.metrics.num_rounds for run in runs)

    def _pairs(self, one: str, other: str) -> list[tuple[list[Run], list[Run]]]:
        return list(zip(self.runs[one], self.runs[other], strict=True))


def _tokens(runs: Sequence[Run]) -> float:
    return max(sum(len(run.token_ids) for run in runs), 1)


def _seconds(runs: Sequence[Run]) -> float:
    return sum(run.metrics.seconds.total for run in runs)


class Advising:
    """Produces an `Advice`, step by step."""

    def __init__(
        self,
        pair: Pair,
        prompts: Sequence[Prompt],
        settings: Resolved,
        tolerance: Tolerance,
        score: Score | None = None,
        on_progress: OnProgress | None = None,
        models: str | None = None,
    ) -> None:
        """Set up; see `advise`. `models` holds the flags that name the pair's models.

        Raises:
            UsageError: a prompt cannot be answered.
        """
        check_prompts(pair, prompts, settings)  # before minutes are spent on others
        self._pair, self._settings, self._tolerance, self._score = pair, settings, tolerance, score
        self._recorded_prompts, self._measured_prompts = halves(prompts)
        self._on_progress, self._models, self._date = on_progress, models or pair.config.flags, now()

    def advice(self) -> Advice:
        """Record, time, predict, measure, and decide."""
        runs, seen = self._record()
        steps = self._time(runs)
        machine = self._machine(steps, with_draft=seen is not None)
        answers = Answers(self._pair, runs, seen, machine, sampling_of(self._settings))
        candidates = answers.lossless(self._on_progress)
        plain = choosing.best([each for each in candidates if each.plain])
        k = plain.k if plain is not None and isinstance(plain.k, int) else RECORDED_K
        all_candidates = [*candidates, *answers.lenient(k, self._on_progress)]
        chosen = choosing.shortlist(all_candidates, self._tolerance)
        comparison = self._confirm([parse(each.strategy) for each in chosen], steps)
        measured = Measured(
            _by_prompt(comparison.runs),
            frozenset([TARGET, *(each.strategy for each in chosen if each.lossless)]),
        )
        rows = [self._confirmed(row, chosen, measured) for row in comparison.summary]
        plain_spec = None if plain is None else plain.strategy
        decided = choosing.decide(rows, measured.faster, comparison.spread)
        gains = Levers(answers.gain, answers.oracle()) if seen is not None else None
        return self._document(
            finding=choosing.find(decided, rows, plain_spec, measured.faster, comparison.spread),
            use=self._use(decided.strategy, k),
            confirmed=rows,
            candidates=candidates,
            levels=choosing.levels(all_candidates),
            levers=[] if gains is None else choosing.levers(gains, machine),
            explanation=comparison.explanation,
            looked=answers.recorded_summary(),
            machine=machine,
            profile=steps,
            spread=comparison.spread,
            notes=self._notes(rows),
        )

    def _document(self, **results: Any) -> Advice:
        """Build the document: what was found, and the conditions it holds for."""
        return Advice(
            date=self._date,
            pair=self._pair.info,
            sampling=request_for(self._settings, ()).sampling_info,
            environment=environment(self._pair.device, *(parse(row.strategy) for row in results["confirmed"])),
            tolerance=self._tolerance,
            confirmed_on=[prompt.id for prompt in self._measured_prompts],
            apart=self._recorded_prompts != self._measured_prompts,
            **results,
        )

    def _use(self, strategy: str, fixed_k: int) -> Use:
        """How to use a strategy; engines without stops get the best fixed length instead."""
        params = parse(strategy).params
        return use(strategy, params, self._pair.info, self._models, sampling_of(self._settings), fixed_k)

    def _record(self) -> tuple[list[Run], Seen | None]:
        """Record answers from the target's distribution and, with a draft model, both models' distributions."""
        if self._pair.draft is not None:
            seen = record(self._pair, self._recorded_prompts, self._settings, RECORDED_K, on_progress=self._on_progress)
            return list(seen.runs), seen
        runs: list[Run] = []
        for number, prompt in enumerate(self._recorded_prompts):
            self._report_progress(prompt.id, number, len(self._recorded_prompts))
            runs += converse(self._pair, parse(TARGET), prompt, self._settings)
        return runs, None

    def _time(self, runs: Sequence[Run]) -> Profile:
        """Time the pair's steps at the context where the recorded answers were half done."""
        context = int(median([run.prompt_tokens + len(run.token_ids) / 2 for run in runs]))
        room = self._pair.context
        if room is not None:
            context = max(1, min(context, room - max(BLOCKS)))
            room -= context
        return profile(self._pair, context, blocks=blocks_for((), room), repeats=REPEATS, on_progress=self._on_progress)

    def _machine(self, steps: Profile, *, with_draft: bool) -> Machine:
        """Costs of the steps and, from short alternating runs of two strategies, of the time outside them."""
        step, both = steps.target[1].median, (parse(TARGET), parse(_drafting(with_draft)))
        # Medians: in runs this short, a single pause of the machine can dominate the time outside the models.
        turns = [[self._pilot(each) for each in both] for _ in range(REPEATS)]
        alone, drafting = ([turn[i].metrics for turn in turns] for i in range(len(both)))
        prompts = zip(alone, drafting, strict=True)
        reading = median(drafted.seconds.prefill / plain.seconds.prefill for plain, drafted in prompts) - 1
        return Machine(
            step_seconds=step,
            c=steps.c,
            v=[steps.v(n) for n in range(1, steps.longest + 1)],
            outside=_outside(drafting) / step,
            outside_drafted=sum(each.num_draft_tokens for each in drafting) / sum(each.num_rounds for each in drafting)
            or None,
            outside_alone=_outside(alone) / step,
            draft_reading=max(reading, 0.0) if with_draft else 0.0,
        )

    def _pilot(self, strategy: Strategy) -> Run:
        """Decode a short answer to the first prompt, after a warm-up."""
        short = replace(self._settings, max_new_tokens=min(self._settings.max_new_tokens, PILOT_TOKENS))
        prompt = self._recorded_prompts[0]
        request = request_of_turn(self._pair, prompt.turns[0], Conversation(short.system), short, prompt.id)
        for tokens in (RECORDED_K + 2, short.max_new_tokens):
            run = decode(self._pair, strategy, replace(request, max_new_tokens=tokens))
        return run

    def _confirm(self, strategies: Sequence[Strategy], steps: Profile) -> Comparison:
        """Run the target and these strategies, interleaved as in `compare`."""
        pair = replace(self._pair, steps=steps)  # used by stops such as `rate`
        done = Repeats(pair, self._measured_prompts, [parse(TARGET), *strategies], self._settings)
        done.warm_up()
        done.run(counting(self._on_progress, done.answers) if self._on_progress is not None else None)
        return done.comparison(steps)

    def _confirmed(self, row: Row, chosen: Sequence[Candidate], measured: Measured) -> Confirmed:
        candidate = next((each for each in chosen if each.strategy == row.strategy), None)
        lossless = row.strategy in measured.lossless
        scored, over = self._quality(row.strategy, measured), measured.faster(row.strategy, TARGET)
        return Confirmed(
            strategy=row.strategy,
            predicted=None if candidate is None else candidate.gain,
            speed=over.ratio,
            by_answer=over.by_answer,
            answers=measured.answers(row.strategy, TARGET),
            length=measured.length(row.strategy, TARGET),
            share_cut=row.share_cut,
            tokens_per_second=row.tokens_per_second,
            tokens_per_round=measured.tokens_per_round(row.strategy),
            draft_acceptance_rate=row.tested_acceptance_rate,
            mean_tv=row.mean_tv_to_target,
            lossless=lossless,
            same_answers=row.answers_same or 0,
            num_answers=row.num_answers or 0,
            quality=scored,
            refused=None if lossless else choosing.refusal(self._tolerance, row.mean_tv_to_target, scored),
        )

    def _quality(self, strategy: str, measured: Measured) -> Quality | None:
        """A strategy's scores compared with the target's, on the last turn of each prompt; None without a scorer."""
        if self._score is None:
            return None
        targets = measured.runs[TARGET]
        ours, theirs = (
            [
                self._score(prompt, runs[-1], target[-1])
                for prompt, runs, target in zip(self._measured_prompts, measured.runs[name], targets, strict=True)
            ]
            for name in (strategy, TARGET)
        )
        return choosing.quality(ours, theirs, self._tolerance.max_quality_loss or 0.0)

    def _notes(self, rows: Sequence[Confirmed]) -> list[str]:
        """Limitations of the advice."""
        notes = []
        if self._recorded_prompts == self._measured_prompts:
            notes.append("predictions and measurements share their prompts; 4 or more prompts would be split")
        if len(self._measured_prompts) < choosing.FEWEST:
            n = len(self._measured_prompts)
            few = f"{n} measured prompts give a range, not" if n > 1 else "one measured prompt does not give"
            notes.append(f"{few} a 95% interval: 12 or more would")
        if self._pair.draft is None:
            notes.append("the pair has no draft model: rules and stops were not considered")
        if self._pair.by_head:
            notes.append(
                f"a head's drafts depend on where its round began; rounds of {RECORDED_K} were recorded, so predictions"
                " for other k are rough, and too high for longer blocks"
            )
        notes += choosing.answer_notes(rows, self._tolerance)
        return notes

    def _report_progress(self, what: str, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(what, done, total)


def _drafting(with_draft: bool) -> str:
    """Strategy of the short run that measures a round's time outside the models."""
    return f"speculative:k={RECORDED_K}" if with_draft else f"speculative:draft=prompt-lookup,k={RECORDED_K}"


def _outside(runs: Sequence[Metrics]) -> float:
    """Seconds per round outside the models, median over short runs."""
    return median(each.seconds.other / each.num_rounds for each in runs)


def _by_prompt(runs: Sequence[Run]) -> dict[str, list[list[Run]]]:
    """Group the runs of all turns by strategy, then by prompt."""
    groups: dict[str, dict[Hashable, list[Run]]] = {}
    for spec, ours in by_strategy(runs).items():
        groups[spec] = {}
        for prompt, run in zip(prompts_of(ours), ours, strict=True):
            groups[spec].setdefault(prompt, []).append(run)
    return {spec: [*prompts.values()] for spec, prompts in groups.items()}
