"""Acceptance of drafts in a format that serving tools read: `speculation_profile.json`, schema 1.0. No torch.

Source: NVIDIA's Model-Optimizer, `examples/specdec_bench/specdec_bench/speculation_profile.py`. NVIDIA Dynamo's
simulator takes the conditional rates (`aic_nextn_accept_rates`), vLLM's synthetic rejection sampler the marginal ones
(`synthetic_acceptance_rates`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import PureWindowsPath
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from cascli.config import EAGLE3_PREFIX, WITH_COMMIT
from cascli.errors import UsageError
from cascli.trace import Data, Document, ModelInfo, block_length, by_block, by_strategy, prompts_of, with_params
from cascli.version import __version__

if TYPE_CHECKING:
    from cascli.analysis.comparison import Comparison
    from cascli.trace import Metrics, Run

FILE = "speculation_profile.json"
DIGITS = 6
TOLERANCE = 0.02
"""Allowed difference between the mean and the rates, as in the schema's own producer."""
METHODS = {"model": "draft_model", "prompt-lookup": "ngram"}
"""Serving engines' names for drafters; other drafters keep theirs."""
SPECULATING = ("speculative", "speculative-cascade")
"""Strategies that draft ahead, even if their drafter found nothing to propose."""
CHAINS = ("draft_model", "eagle", "eagle3")
"""Methods whose draft of n tokens is a prefix of their draft of n + 1, so rates hold for shorter drafts too."""
BY_BLOCK = "verify=block tests prefixes of a draft, so these are not rates of a longest-prefix test"
NOTHING_DRAFTS = f"{FILE}: no strategy drafts ahead here; add one, such as -s speculative:k=4"


class Checkpoint(Data):
    """A model, named without the full paths of this machine."""

    id: str
    """The model's name on the hub, or the last part of its path."""
    revision: str | None = None
    """Revision on the hub."""
    dtype: str
    """Precision of the model."""

    @classmethod
    def of(cls, source: str, dtype: str) -> Self:
        """Build from a model's source as stored in runs, such as `hub:Qwen/Qwen3-8B@main`."""
        kind, _, place = source.removeprefix(EAGLE3_PREFIX).partition(":")
        if kind == "hub":
            name, _, revision = place.partition("@")
            return cls(id=name, revision=WITH_COMMIT.sub(r"\1", revision) or None, dtype=dtype)
        # Windows paths accept both kinds of slash.
        name = PureWindowsPath(place).name or place
        return cls(id=name if kind == "path" else source, dtype=dtype)


class Conditions(Data):
    """Measurement conditions."""

    engine: str = f"cascli {__version__}"
    """The engine that ran, with its version."""
    date: str | None
    """Start time in UTC (ISO 8601)."""
    strategy: str
    """The strategy with all its parameters; the rates of a lenient rule hold for that rule."""
    lossless: bool | None
    """Whether the output distribution was the target's at every token."""
    dataset: str | None = None
    """Kind of a sweep's task; None outside sweeps."""
    num_prompts: int
    """Number of different prompts; the turns of a conversation count as one."""
    num_decode_steps: int
    """Number of rounds, from which the rates are computed."""
    temperature: float
    top_k: int
    top_p: float
    max_new_tokens: int
    concurrency: int | None
    """Number of answers decoded concurrently; None if it varied."""
    hardware: str | None
    """The device's name."""


class MeanConsistency(Data):
    """Whether the mean agrees with the one that the marginal rates imply: 1 + their sum."""

    implied_mean_accept_length: float
    """1 + the sum of the marginal rates."""
    reported_mean_accept_length: float
    """The profile's `mean_accept_length`."""
    abs_delta: float
    """Absolute difference between the implied and the reported mean."""
    tolerance: float = TOLERANCE
    """Largest allowed difference."""
    passed: bool
    """Whether the difference is within the tolerance."""


class Monotonicity(Data):
    """Whether no marginal rate is larger than the one before it."""

    passed: bool
    """Whether there are no violations."""
    violations: list[dict[str, float]]
    """Rates that are larger than the one before them, with their positions."""


class Validation(Data):
    """The checks that the schema's own producer makes."""

    mean_consistency: MeanConsistency
    """Whether the mean agrees with the marginal rates."""
    marginal_monotonicity: Monotonicity
    """Whether the marginal rates never increase."""


class SpeculationProfile(Document):
    """Acceptance of one strategy's drafts, by position in the draft. Lengths count the bonus or residual token."""

    kind: ClassVar[str] = "speculation profile"

    schema_version: Literal["1.0"] = "1.0"
    """Version of the schema, which NVIDIA's Model-Optimizer defines; not a version of cascli's schemas."""
    measured: Literal[True] = True
    """Always true; false in placeholder files from other producers."""
    producer: str = f"cascli {__version__}"
    """The program that wrote the file."""
    method: str
    """Where drafts come from: `draft_model`, `ngram`, or the drafter's own name."""
    draft_checkpoint: Checkpoint | None
    """The draft model; None if none was used."""
    target_model: Checkpoint
    """The target."""
    num_speculative_tokens: int
    """Maximum number of drafted tokens per round."""
    block_size: None = None
    """Block size of drafters that were trained for a fixed one; always None here."""
    max_supported_k: int
    """Length of the longest draft that was measured."""
    verification_method: Literal["longest_prefix", "block"]
    """`block` with `verify=block`."""
    conditional_accept_rates: list[float] | None
    """Entry i: among the rounds that kept the first i drafts, the share that also kept draft i + 1; None with
    `verify=block`."""
    marginal_accept_rates: list[float] | None
    """Entry i: the share of all rounds that kept the first i + 1 drafts; None with `verify=block`."""
    vectors_unavailable_reason: str | None = None
    """Why there are no rates; None if there are."""
    mean_accept_length: float
    """Mean acceptance length over all rounds."""
    mean_accept_length_per_request: float
    """Mean over prompts of each prompt's mean acceptance length: short answers weigh as much as long ones."""
    accept_length_model: Literal["chain_analytic", "measured_per_k"]
    """Whether the rates hold for shorter drafts too, or each length must be measured."""
    accept_length_by_k: dict[str, float]
    """Mean acceptance length over all rounds, for every k that was measured."""
    acceptance_length_histogram: dict[str, int]
    """Number of rounds by acceptance length: the tokens that a round would add if the answer did not end in it."""
    per_category: dict[str, float] | None
    """Mean acceptance length over prompts, for each category of prompts; None if they have no categories."""
    measurement_conditions: Conditions
    """How the profile was measured."""
    validation: Validation | None
    """Consistency checks of the rates; None with `verify=block`."""

    def to_json(self, indent: int | None = 2) -> str:
        """Serialise to one JSON document, indented by default."""
        return super().to_json(indent)


@dataclass(frozen=True)
class Kept:
    """The drafts that were kept for a prompt."""

    prompt: str
    category: str
    rounds: Sequence[int]
    """Entry j: the number of rounds in which exactly j drafted tokens were kept."""


class Drafting(NamedTuple):
    """A strategy that may draft ahead."""

    name: str
    params: Mapping[str, Any]
    drafted: bool = False
    """Whether any of its answers drafted a token."""

    @property
    def spec(self) -> str:
        """Its name and parameters as one string."""
        return with_params(self.name, self.params)

    @property
    def ahead(self) -> bool:
        """Whether it drafts ahead: a strategy of another package may have a parameter `k` that means something else."""
        return bool(block_length(self.params)) and (self.drafted or self.name in SPECULATING)

    @property
    def alike(self) -> dict[str, Any]:
        """What strategies have in common if they differ only in a fixed k."""
        return {"name": self.name, **self.params, "k": self.params.get("k") == "auto"}


def described(strategies: Iterable[Drafting]) -> list[Drafting]:
    """Return the strategies that a profile describes: the first exact speculation at every k, the longest k first.

    If none is exact, the first lenient strategy is used; if none drafts ahead, the list is empty.
    """
    drafting = [each for each in strategies if each.ahead]
    first = next((each for each in drafting if each.name == "speculative"), drafting[0] if drafting else None)
    alike = [each for each in drafting if first is not None and each.alike == first.alike]
    return sorted(alike, key=lambda each: -block_length(each.params))


def histogram(metrics: Iterable[Metrics]) -> list[int]:
    """Return counts; entry j is the number of rounds of all these runs in which exactly j drafted tokens were kept."""
    # A run that drafted nothing still has rounds, in which nothing was kept.
    return added(m.acceptance_histogram or [m.num_rounds] for m in metrics)


def added(histograms: Iterable[Sequence[int]]) -> list[int]:
    """Return the sum of histograms of any lengths."""
    return [sum(counts) for counts in zip_longest(*histograms, fillvalue=0)]


def profile(
    strategy: Drafting,
    kept: Sequence[Kept],
    by_k: Mapping[int, Sequence[Kept]],
    *,
    draft: Checkpoint | None,
    target: Checkpoint,
    **conditions: Any,
) -> SpeculationProfile:
    """Return the profile of a strategy.

    Args:
        strategy: a strategy that drafts ahead.
        kept: the drafts kept in its answers, with at least one round.
        by_k: the drafts kept by strategies that differ only in k, including this one.
        draft: the draft model, if it was used.
        target: the target.
        conditions: the fields of `Conditions` that do not follow from the answers.
    """
    k, blocks = block_length(strategy.params), by_block(strategy.params)
    method = METHODS.get(strategy.params.get("draft", "model"), strategy.params.get("draft", ""))
    chain = method in CHAINS and not blocks and strategy.params.get("k") == k and "stop" not in strategy.params
    counts = added(each.rounds for each in kept)
    marginal, mean, by_prompt = _marginal(counts, k), _mean(counts), _by_prompt(kept)
    categories = sorted({category for category, _ in by_prompt.values()} - {""})
    return SpeculationProfile(
        method=method,
        draft_checkpoint=draft,
        target_model=target,
        num_speculative_tokens=k,
        max_supported_k=k,
        verification_method="block" if blocks else "longest_prefix",
        conditional_accept_rates=None if blocks else _conditional(marginal),
        marginal_accept_rates=None if blocks else [round(rate, DIGITS) for rate in marginal],
        vectors_unavailable_reason=BY_BLOCK if blocks else None,
        mean_accept_length=round(mean, DIGITS),
        mean_accept_length_per_request=round(fmean(length for _, length in by_prompt.values()), DIGITS),
        accept_length_model="chain_analytic" if chain else "measured_per_k",
        accept_length_by_k={
            str(each): round(_mean(added(one.rounds for one in by_k[each])), DIGITS) for each in sorted(by_k)
        },
        acceptance_length_histogram={str(j + 1): count for j, count in enumerate(counts) if count},
        per_category={
            name: round(fmean(length for category, length in by_prompt.values() if category == name), DIGITS)
            for name in categories
        }
        or None,
        measurement_conditions=Conditions(
            strategy=strategy.spec, num_prompts=len(by_prompt), num_decode_steps=sum(counts), **conditions
        ),
        validation=None if blocks else _validation(mean, marginal),
    )


def _marginal(counts: Sequence[int], k: int) -> list[float]:
    """Return k shares; entry i is the share of rounds that kept more than i drafts."""
    beyond = [sum(counts[i + 1 :]) for i in range(k)]
    return [each / sum(counts) for each in beyond]


def _conditional(marginal: Sequence[float]) -> list[float]:
    return [round(here / before, DIGITS) if before else 0.0 for before, here in pairwise([1.0, *marginal])]


def _mean(counts: Sequence[int]) -> float:
    return sum((j + 1) * count for j, count in enumerate(counts)) / sum(counts)


def _by_prompt(kept: Sequence[Kept]) -> dict[str, tuple[str, float]]:
    """Return each prompt's category, and the mean acceptance length over all its rounds."""
    groups: dict[str, list[Kept]] = {}
    for each in kept:
        groups.setdefault(each.prompt, []).append(each)
    return {
        prompt: (group[0].category, _mean(added(each.rounds for each in group))) for prompt, group in groups.items()
    }


def _validation(mean: float, marginal: Sequence[float]) -> Validation:
    implied = 1 + sum(marginal)
    delta = abs(implied - mean)
    larger = [
        {"position": i, "value": here, "previous": before}
        for i, (before, here) in enumerate(pairwise(marginal), 1)
        if here > before
    ]
    return Validation(
        mean_consistency=MeanConsistency(
            implied_mean_accept_length=round(implied, DIGITS),
            reported_mean_accept_length=round(mean, DIGITS),
            abs_delta=round(delta, DIGITS),
            passed=delta <= TOLERANCE,
        ),
        marginal_monotonicity=Monotonicity(passed=not larger, violations=larger),
    )


def of_comparison(comparison: Comparison) -> SpeculationProfile:
    """Return the profile of a comparison's strategy that `described` selects, from its first repeat.

    Raises:
        UsageError: no strategy drafts ahead.
    """
    runs = by_strategy(comparison.runs)
    alike = described(_drafting(each) for each in runs.values())
    if not alike:
        raise UsageError(NOTHING_DRAFTS)
    chosen = runs[alike[0].spec]
    first = chosen[0]
    draft_used = any(run.metrics.draft_calls for run in chosen)
    lossless = [run.metrics.lossless for run in chosen]
    return profile(
        alike[0],
        _kept(chosen),
        {block_length(each.params): _kept(runs[each.spec]) for each in alike},
        draft=_checkpoint(first.pair.draft) if draft_used and first.pair.draft is not None else None,
        target=_checkpoint(first.pair.target),
        date=comparison.date or first.date,
        lossless=None if None in lossless else all(lossless),
        temperature=first.sampling.temperature,
        top_k=first.sampling.top_k,
        top_p=first.sampling.top_p,
        max_new_tokens=first.sampling.max_new_tokens,
        concurrency=comparison.batch_size,
        hardware=first.environment.get("device"),
    )


def _drafting(runs: Sequence[Run]) -> Drafting:
    return Drafting(runs[0].strategy, runs[0].params, drafted=any(run.metrics.num_draft_tokens for run in runs))


def _checkpoint(model: ModelInfo) -> Checkpoint:
    return Checkpoint.of(model.source, model.dtype)


def _kept(runs: Sequence[Run]) -> list[Kept]:
    prompts = map(str, prompts_of(runs))
    return [Kept(name, run.category, histogram([run.metrics])) for name, run in zip(prompts, runs, strict=True)]
