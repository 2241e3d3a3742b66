"""Predict every way to speculate along answers recorded once: drafters, lengths, stops, rules."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch

from cascli import stops
from cascli.analysis import theory
from cascli.analysis.advice import Candidate, Looked
from cascli.analysis.replay import (
    Cost,
    Drafts,
    Machine,
    Recorded,
    along,
    best_length,
    fixed_cost,
    lookup_drafts,
    oracle,
    replayed,
    room,
    with_stop,
)
from cascli.analysis.statistics import median
from cascli.decoding.plugin_checks import applied, beginning
from cascli.decoding.speculation import asks_late
from cascli.drafters.prompt_lookup import continuation
from cascli.drafters.suffix import followers
from cascli.jobs.recording import Seen
from cascli.jobs.rule_curves import GRID, with_dial
from cascli.jobs.usable import left_out_if_it_fails, usable_stops
from cascli.models.pair import Pair
from cascli.notebook import OnProgress
from cascli.rules.base import Rule
from cascli.sampling import distributions
from cascli.sampling.parameters import AUTO_DRAFTED, Sampling
from cascli.strategies import parse
from cascli.strategies.base import validated
from cascli.trace import Run, StepCosts, prompts_of, with_params

NGRAMS = (2, 3, 5)
"""Values of `max_ngram` tried for prompt lookup."""
Chances = Sequence[Sequence[float]]
"""Probabilities that a draft passes, at each token of each answer."""


class RuleSetting(NamedTuple):
    """A rule at one setting, judged at every recorded position."""

    params: dict[str, Any]
    """The rule's parameters, its name first."""
    acceptance: torch.Tensor
    """Acceptance at each position, `[N]`."""
    mean_tv: float
    reads_draft: bool
    late: bool
    """Whether q after a block is computed only once the whole block has passed."""


class Answers:
    """Recorded answers, and predictions for any way to speculate along them."""

    def __init__(
        self, pair: Pair, runs: Sequence[Run], seen: Seen | None, machine: Machine, sampling: Sampling
    ) -> None:
        """Use answers that follow the target's distribution.

        Args:
            pair: the pair that wrote them.
            runs: the answers; those without a token are ignored.
            seen: both models' distributions at their positions; None for a pair without a draft model.
            machine: what steps cost.
            sampling: sampling of the answers.
        """
        self._pair, self._seen, self._machine, self._sampling = pair, seen, machine, sampling
        answered = [(prompt, run) for prompt, run in zip(prompts_of(runs), runs, strict=True) if run.token_ids]
        self._prompts, self._runs = [prompt for prompt, _ in answered], [run for _, run in answered]
        of_target = 1 / (1 + (machine.draft_reading if seen is not None else 0.0)) / machine.step_seconds
        self._recorded = [
            Recorded(
                prompt,
                len(run.token_ids),
                run.metrics.seconds.prefill * of_target,
                ended=run.finish_reason != "length",
            )
            for prompt, run in answered
        ]

    @property
    def _distributions(self) -> Seen:
        """The recorded distributions, for code that requires a draft model."""
        if self._seen is None:
            raise ValueError("the pair has no draft model")
        return self._seen

    @property
    def longest(self) -> int:
        """The longest block considered."""
        return min(self._machine.longest, AUTO_DRAFTED)

    @cached_property
    def chances(self) -> Chances:
        """Probabilities that the draft model's tokens pass exact verification."""
        return [] if self._seen is None else [each for each in self._seen.passing(self._seen.expected) if each]

    def recorded_summary(self) -> Looked:
        """Summary of what was recorded."""
        cut = sum(run.finish_reason == "length" for run in self._runs)
        common: dict[str, Any] = {
            "prompts": [each if isinstance(each, str) else "" for each in dict.fromkeys(self._prompts)],
            "tokens": sum(each.tokens for each in self._recorded),
            "share_cut": cut / len(self._runs),
        }
        if self._seen is None:
            return Looked(acceptance=None, **common)
        mean = float(self._seen.expected.mean())
        after = [two for each in self.chances for two in pairwise(each)]
        first = sum(a for a, _ in after)
        thirds = [[value for each in self.chances for value in _third(each, i)] for i in range(3)]
        return Looked(
            acceptance=mean,
            acceptance_by_third=[sum(each) / len(each) for each in thirds if each],
            passing_rows=sum(a * b for a, b in after) / first / mean if first and mean else None,
            mean_tail=float(self._seen.tail.mean()),
            **common,
        )

    # ---- without loss

    def lossless(self, on_progress: OnProgress | None = None) -> list[Candidate]:
        """Lossless candidates, best first: the draft model at every length and stop, others at their best length."""
        candidates, parts = list[Candidate](), [self._prompt_lookups, self._suffixes]
        if self._seen is not None:
            parts = [self._fixed, self._stopped, *parts]
        for number, part in enumerate(parts):
            if on_progress is not None:
                on_progress("replaying drafters and stops", number, len(parts))
            candidates += part()
        return sorted(candidates, key=lambda each: -each.gain)

    def _fixed(self) -> Iterator[Candidate]:
        """The draft model with blocks of each length; the best length also verified by block where that may help."""
        cost, passing = fixed_cost(self._machine), float(self._distributions.expected.mean())
        lengths = [
            self._from_drafts(f"speculative:k={k}", k, self._along_draft(k), cost, acceptance=passing)
            for k in range(1, self.longest + 1)
        ]
        yield from lengths
        best = max(lengths, key=lambda each: each.gain)
        if self._sampling.temperature and best.k != 1:
            yield best.model_copy(update={"strategy": f"speculative:k={best.k},verify=block"})

    def _along_draft(self, k: int) -> list[Drafts]:
        return self._along(self.chances, k)

    def _along(self, chances: Chances, k: int) -> list[Drafts]:
        return [along(each, k, ended=answer.ended) for each, answer in zip(chances, self._recorded, strict=True)]

    def _stopped(self) -> Iterator[Candidate]:
        """The draft model with each stop, at the stop's default settings."""
        costs = StepCosts(c=self._machine.c, v=self._machine.v, measured=True)
        for name in usable_stops():
            if name == "never":
                continue
            kind, parts = stops.load(name), []
            with left_out_if_it_fails(kind):
                spec, stop = parse(f"speculative:stop={name},k=auto").spec, validated(kind, {})
                readings, toss = self._readings(stop.reads), random.Random(0).random
                parts += [
                    with_stop(
                        each,
                        read,
                        partial(beginning, stop, costs),
                        self.longest,
                        self._machine,
                        toss,
                        ended=answer.ended,
                    )
                    for each, read, answer in zip(self.chances, readings, self._recorded, strict=True)
                ]
            if parts:
                spent, rounds = zip(*parts, strict=True)
                yield self._candidate(spec, "auto", spent, rounds, stop=name)

    def _readings(self, reads: str | None) -> list[list[float]]:
        """What a stop reads at every token of every answer; for the chance of a drawn token, its expectation."""
        d = self._distributions.d
        if reads == "entropy":
            values = d.entropy("q1").squeeze(-1)
        elif reads == "chance":
            values = (d.q * d.per_token("q1")).sum(dim=-1)
        else:
            values = d.best("q1").squeeze(-1)
        return [part.tolist() for part in values.split(self._distributions.lengths) if len(part)]

    def _prompt_lookups(self) -> Iterator[Candidate]:
        """Prompt lookup at its best lengths; exact, since the text alone shows whether a copied token passes."""
        for max_ngram in NGRAMS:
            copies = [self._copies(run, max_ngram) for run in self._runs]
            yield self._best(f"speculative:draft=prompt-lookup,max_ngram={max_ngram}", partial(self._copied, copies))

    def _copied(self, copies: Sequence[list[list[int]]], k: int) -> list[Drafts]:
        answers = zip(copies, self._runs, self._recorded, strict=True)
        return [lookup_drafts(each, run.token_ids, k, ended=answer.ended) for each, run, answer in answers]

    def _copies(self, run: Run, max_ngram: int) -> list[list[int]]:
        text, start = [*(run.prompt_token_ids or []), *run.token_ids], len(run.prompt_token_ids or [])
        ends = self._pair.eos_ids
        return [continuation(text[:t], self.longest, ends, max_ngram) for t in range(start, len(text))]

    def _suffixes(self) -> Iterator[Candidate]:
        """Drafts from counts of what followed earlier occurrences, at the best length."""
        chances = [self._counted(run) for run in self._runs]
        yield self._best("speculative:draft=suffix", partial(self._while_known, chances))

    def _while_known(self, chances: Sequence[Sequence[float | None]], k: int) -> list[Drafts]:
        return [_while_known(each, k, ended=answer.ended) for each, answer in zip(chances, self._recorded, strict=True)]

    def _counted(self, run: Run) -> list[float | None]:
        """Probability that a draft drawn from counts passes, given the written token: min(1, q / p) at that token.

        Its mean over the tokens that could have been written is sum min(q, p). None where there are no counts.
        """
        text, start = [*(run.prompt_token_ids or []), *run.token_ids], len(run.prompt_token_ids or [])
        chances: list[float | None] = []
        for place, token in enumerate(run.emitted):
            counts = followers(text[: start + place], self._pair.eos_ids)
            if not counts:
                chances.append(None)
                continue
            ids = sorted(counts)  # among equal counts, greedy drafting takes the smallest id
            logits = torch.tensor([[counts[each] for each in ids]], dtype=torch.float32).log()
            q = dict(zip(ids, distributions.warp(logits, self._sampling)[0].tolist(), strict=True))
            chances.append(min(1.0, q.get(token.id, 0.0) / (token.p or 1.0)))
        return chances

    # ---- rules

    def lenient(self, lossless_k: int, on_progress: OnProgress | None = None) -> Iterator[Candidate]:
        """Every rule over its range, drafted by the model, with each setting at its best fixed length.

        Args:
            lossless_k: the best length without loss, where the search for other lengths starts.
            on_progress: called with the rule being judged.
        """
        if self._seen is None:
            return
        dials = [*with_dial()]
        for number, (name, kind, dial) in enumerate(dials):
            if on_progress is not None:
                on_progress(f"judging {name}", number, len(dials))
            values = dict.fromkeys(dial.at(i / GRID) for i in range(GRID + 1))
            settings, seconds = list[RuleSetting](), list[float]()
            with left_out_if_it_fails(kind):
                # The rule's parameters, parsed once: parsing each setting would take longer than judging it.
                params = parse(f"speculative-cascade:rule={name},{dial.parameter}={dial.strict}").params
                for value in values:
                    rule = validated(kind, {dial.parameter: value})
                    start = time.perf_counter()
                    settings.append(self._rule_setting(params | {dial.parameter: value}, rule))
                    seconds.append(time.perf_counter() - start)
            if len(settings) < len(values):
                continue
            extra, k = self._rule_cost(median(seconds)), lossless_k
            for setting in settings:
                candidate = self._lenient(setting, extra, k)
                k = int(candidate.k)
                yield candidate

    def _rule_setting(self, params: dict[str, Any], rule: Rule) -> RuleSetting:
        d = self._distributions.d
        pi = applied(rule, d)
        acceptance = distributions.overlap(pi, d.q)
        tv = float(distributions.total_variation(pi, d.p).mean())
        late = asks_late(rule, self._pair.runner("draft"), self._pair.device, captures=self._pair.graphs.captures)
        return RuleSetting(params, acceptance, tv, rule.reads_draft, late)

    def _rule_cost(self, seconds: float) -> Cost:
        """Cost of the rule itself in a round: on a CPU, the time per matrix entry measured here; on a GPU, 0."""
        if self._pair.device.type != "cpu":
            return lambda _: 0.0
        of_a_row = seconds / self._distributions.d.q.numel() * self._pair.vocab / self._machine.step_seconds
        return lambda j: of_a_row * (j + 1)

    def _lenient(self, rule: RuleSetting, extra: Cost, near: int) -> Candidate:
        chances = [each for each in self._distributions.passing(rule.acceptance) if each]
        cost = fixed_cost(self._machine, reads_last=rule.reads_draft and not rule.late, extra=extra)
        behind = self._machine.c if rule.late else 0.0

        def drafts(k: int) -> list[Drafts]:
            return self._along(chances, k)

        def speed(k: int) -> float:
            return self._speed(self._machine, drafts(k), cost, behind, model=True)

        k = best_length(speed, self.longest, near)
        about = {"acceptance": float(rule.acceptance.mean()), "rule": rule.params["rule"], "mean_tv": rule.mean_tv}
        return self._from_drafts(
            with_params("speculative-cascade", rule.params | {"k": k}), k, drafts(k), cost, behind, **about
        )

    # ---- results

    def gain(self, machine: Machine, left: float) -> tuple[int, float]:
        """Best k of the draft model and its gain on another machine, with only a share `left` of all rejections."""
        chances = [[1 - left * (1 - a) for a in each] for each in self.chances]
        speeds = {
            k: self._speed(machine, self._along(chances, k), fixed_cost(machine), model=True)
            for k in range(1, self.longest + 1)
        }
        k = max(speeds, key=lambda each: (speeds[each], -each))
        return k, speeds[k]

    def oracle(self) -> float:
        """Gain of the draft model if it drafted exactly the tokens that are kept."""
        return oracle(self._recorded, self._machine, self.chances)

    def _speed(
        self, machine: Machine, drafts: Sequence[Drafts], cost: Cost, behind: float = 0.0, *, model: bool
    ) -> float:
        spent = self._spent(drafts, cost, behind)
        return replayed(self._recorded, machine, spent, [1.0] * len(spent), reads_draft=model).speed.of_means

    def _spent(self, drafts: Sequence[Drafts], cost: Cost, behind: float = 0.0) -> list[float]:
        return [
            theory.expected_cost(answer.tokens, each, cost, behind)
            for answer, each in zip(self._recorded, drafts, strict=True)
        ]

    def _best(self, spec: str, drafts: Callable[[int], list[Drafts]]) -> Candidate:
        """A drafter without a model, at its best length."""
        cost = fixed_cost(self._machine, model=False)
        speeds = {k: self._speed(self._machine, drafts(k), cost, model=False) for k in range(1, self.longest + 1)}
        k = max(speeds, key=lambda each: (speeds[each], -each))
        strategy = parse(f"{spec},k={k}")
        return self._from_drafts(strategy.spec, k, drafts(k), cost, drafter=strategy.params["draft"])

    def _from_drafts(
        self, spec: str, k: int, drafts: Sequence[Drafts], cost: Cost, behind: float = 0.0, **more: Any
    ) -> Candidate:
        rounds = self._spent(drafts, lambda _: 1.0)
        return self._candidate(spec, k, self._spent(drafts, cost, behind), rounds, **more)

    def _candidate(
        self, spec: str, k: int | Literal["auto"], spent: Sequence[float], rounds: Sequence[float], **more: Any
    ) -> Candidate:
        about = {"drafter": "model", **more}
        replay = replayed(self._recorded, self._machine, spent, rounds, reads_draft=about["drafter"] == "model")
        return Candidate(strategy=spec, k=k, tokens_per_round=replay.tokens_per_round, speed=replay.speed, **about)


def _third(values: Sequence[float], which: int) -> Sequence[float]:
    n = len(values)
    return values[which * n // 3 : (which + 1) * n // 3]


def _while_known(chances: Sequence[float | None], k: int, *, ended: bool = False) -> Drafts:
    """Rounds of up to k tokens, cut before the first token whose chance is unknown; see `along`.

    Beyond the end of an answer, counts are taken to continue if there were any for its last token.
    """
    n = len(chances)

    def drafts(t: int) -> list[float]:
        known, drafted = list[float](), room(n, t, k, ended=ended)
        for place in range(t, t + drafted):
            each = chances[min(place, n - 1)]
            if each is None:
                break
            known.append(each if place < n - 1 else 0.0)
        return known

    return drafts
