"""Batches of answers at a chosen acceptance rate, compared with predictions from step times. No torch."""

from __future__ import annotations

from cascli.analysis.profile import Profile
from cascli.trace import Data


class BatchRun(Data):
    """Batches of answers decoded at a chosen acceptance rate, compared with what the step times predict."""

    batch_size: int
    """Number of answers decoded concurrently."""
    k: int
    """Drafted tokens per round; 0 is the target alone."""
    tokens_per_second: float
    """Tokens per second of all answers together, without reading the prompts."""
    predicted_tokens_per_second: float
    """Predicted from the times of the batch's passes and the time outside the models per round of a single answer."""

    @property
    def measured_over_predicted(self) -> float:
        """Measured over predicted tokens per second; 1 if the prediction holds."""
        return self.tokens_per_second / self.predicted_tokens_per_second


class BatchMemory(Data):
    """Peak memory of a batch: of the device on a GPU, of the process on a CPU."""

    batch_size: int
    """Number of texts with a cache."""
    tokens: int
    """Tokens of each text, including its answer."""
    predicted_bytes: int
    """Predicted peak: the memory in use before, the caches, and the distributions of a round."""
    measured_bytes: int | None
    """Measured peak; None if the system does not report it."""


def working_bytes(batch_size: int, k: int, vocab: int) -> int:
    """Return the bytes of a round's float32 distributions: all logits, every answer's q, and one answer's tests."""
    block = k + 1
    return 4 * vocab * (batch_size * block + 2 * batch_size * block + 8 * block)


def predicted_rate(profile: Profile, k: int, tokens: float, other: float) -> float:
    """Return the tokens per second of a batch while all of its answers are running.

    Args:
        profile: times of the batch's passes.
        k: drafted tokens per round.
        tokens: tokens that a round adds to an answer.
        other: seconds outside the models per round of one answer; in a batch they are spent one answer at a time.
    """
    drafting = k * profile.draft[1].median if k else 0.0
    target = profile.v(k + 1) * profile.target[1].median
    return profile.batch_size * tokens / (drafting + target + profile.batch_size * other)
