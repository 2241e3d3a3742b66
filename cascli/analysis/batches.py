"""Batches of answers at a chosen acceptance rate, beside what the times of their passes predict. No torch."""

from __future__ import annotations

from cascli.analysis.profile import Profile
from cascli.trace import Data


class BatchRun(Data):
    """Batches of answers that were decoded at a chosen acceptance rate, beside what the step times predict."""

    batch_size: int
    """Answers that were under way at once."""
    k: int
    """0 is the target alone."""
    tokens_per_second: float
    """Of all answers together, reading the prompts left out."""
    predicted_tokens_per_second: float
    """From the batch's passes, and the time outside the models that a round of one answer alone takes."""

    @property
    def measured_over_predicted(self) -> float:
        """1 where the prediction holds."""
        return self.tokens_per_second / self.predicted_tokens_per_second


class BatchMemory(Data):
    """The most memory that a batch took, on a GPU of the device and on a CPU of the process."""

    batch_size: int
    """Texts whose caches there were."""
    tokens: int
    """Of each text, its answer included."""
    predicted_bytes: int
    """What was in use before, the caches, and the distributions of a round."""
    measured_bytes: int | None
    """None where the system does not say."""


def working_bytes(batch_size: int, k: int, vocab: int) -> int:
    """The float32 distributions of a round: logits of all rows, q of every answer, and what decides of one."""
    block = k + 1
    return 4 * vocab * (batch_size * block + 2 * batch_size * block + 8 * block)


def predicted_rate(profile: Profile, k: int, tokens: float, other: float) -> float:
    """Tokens per second of a batch whose answers all are under way.

    Args:
        profile: seconds of its passes.
        k: drafted tokens a round.
        tokens: that a round brings an answer.
        other: seconds outside the models of a round of one answer; those of a batch come one after the other.
    """
    drafting = k * profile.draft[1].median if k else 0.0
    target = profile.v(k + 1) * profile.target[1].median
    return profile.batch_size * tokens / (drafting + target + profile.batch_size * other)
