"""The sequence-level cascade: the draft model answers; its confidence decides whether the answer is kept.

A deferred prompt pays for both answers, and both are counted. Confidence comes from per-token log-probabilities and
margins (Gupta et al. 2024, arXiv 2404.10136: Chow-Average, Chow-Sum and Chow-Quantile).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from cascli.analysis.statistics import percentile
from cascli.decoding.alone import write
from cascli.models.calls import ALONE, Calls, Role
from cascli.strategies.base import Strategy
from cascli.trace import Handover, Round

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.session import Session

_SMALLEST = 1e-38
Score = Literal["mean-logprob", "sum-logprob", "quantile-logprob", "min-margin"]


class Confidence(NamedTuple):
    """The draft model's confidence in each token it wrote, at temperature 1."""

    logprobs: Sequence[float]
    """log q1 of the written tokens."""
    margins: Sequence[float]
    """Probability of the most likely token minus that of the second."""


def score(name: str, confidence: Confidence, level: float) -> float:
    """One number for a whole answer of at least one token; higher is more confident."""
    return SCORES[name](confidence, level)


SCORES: dict[str, Callable[[Confidence, float], float]] = {
    "mean-logprob": lambda c, _: sum(c.logprobs) / len(c.logprobs),
    "sum-logprob": lambda c, _: sum(c.logprobs),
    "quantile-logprob": lambda c, level: percentile(c.logprobs, level),
    "min-margin": lambda c, _: min(c.margins),
}
_HIGHEST: dict[str, float] = {"mean-logprob": 0.0, "sum-logprob": 0.0, "quantile-logprob": 0.0, "min-margin": 1.0}
"""Scores that no answer exceeds."""


@dataclass(frozen=True)
class Cascade(Strategy):
    """Keep the draft model's answer if its score reaches the threshold, else let the target answer."""

    summary: ClassVar[str] = "the draft model answers; if its confidence is low the target answers from scratch"
    formula: ClassVar[str] = "keep the answer iff score(answer) >= threshold"
    source: ClassVar[str] = "Gupta et al. 2024 (Chow-Average, Chow-Sum, Chow-Quantile)"
    lossless_when: ClassVar[str] = "at temperature 0, when the prompt is deferred to the target"

    score: Score = "mean-logprob"
    threshold: Annotated[float, Field(allow_inf_nan=False)] = -0.5
    level: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The quantile that `quantile-logprob` uses; 0 is the least likely token."""

    @property
    def params(self) -> dict[str, Any]:
        """The parameters that apply: `level` only with `quantile-logprob`."""
        values = super().params
        return values if self.score == "quantile-logprob" else {k: v for k, v in values.items() if k != "level"}

    @property
    def tentative(self) -> bool:
        """True: the draft model's answer is kept only if its score is high enough."""
        return True

    def calls(self, role: Role) -> Calls:
        """Token by token; the draft model's confidence is read at temperature 1."""
        return ALONE._replace(reads_base=role == "draft")

    def decode(self, s: Session) -> Iterator[Round | Handover]:
        """Yield the draft model's answer, the decision, and the target's answer if it is needed."""
        logprobs: list[Tensor] = []
        margins: list[Tensor] = []

        def on_distributions(base: Tensor, token: Tensor) -> None:
            top = base.topk(min(2, base.shape[-1]), dim=-1).values
            # Clamp a probability that underflows in float32: JSON cannot represent minus infinity.
            logprobs.append(base[0, token].clamp_min(_SMALLEST).log())
            margins.append(top[:, 0] - top[:, -1])

        ids: list[int] = []
        for round_ in write(s, s.draft, "draft", on_distributions=on_distributions, tentative=True):
            yield round_
            ids += [token.id for token in round_.emitted]
        handover = self._decide(s, ids, Confidence(*s.fetch(_joined(logprobs), _joined(margins))))
        yield handover
        if handover.deferred:
            s.restart()
            yield from write(s, s.target, "target", conditional=not self._always_alike(s))

    def _always_alike(self, s: Session) -> bool:
        """Whether every run of the prompt is deferred if one is: the draft model's answer, or its score, is certain."""
        return s.sampling.temperature == 0 or self.threshold > _HIGHEST[self.score]

    def _decide(self, s: Session, ids: list[int], confidence: Confidence) -> Handover:
        value = score(self.score, confidence, self.level)
        return Handover(
            score=self.score,
            value=value,
            threshold=self.threshold,
            deferred=value < self.threshold,
            draft_token_ids=ids,
            draft_text="",
            draft_finish_reason=s.finish_reason,
        )


def _joined(columns: list[Tensor]) -> Tensor:
    import torch

    return torch.cat(columns)
