"""A pair's speed without text: step times, bandwidth, and what speculation could gain from them. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cascli.analysis.batches import BatchMemory, BatchRun
from cascli.analysis.early_exit import ExitCurve
from cascli.analysis.explanation import Explanation
from cascli.analysis.profile import Profile
from cascli.trace import Data, Document, ModelInfo, PairInfo

if TYPE_CHECKING:
    import pandas


class SyntheticRuns(Data):
    """Speculation at a chosen acceptance rate beside the target alone; its text means nothing."""

    acceptance: float
    tokens: int
    accounts: list[Explanation]
    """One for each k."""
    target_tokens_per_second: float = 0.0
    """Of the target alone, in the same runs; medians over them, reading the prompt left out."""
    tokens_per_second: list[float] = Field(default_factory=list)
    """Of speculation, for each k."""
    models_share: list[float] = Field(default_factory=list)
    """Share of the time after the prompt that the two models' calls, timed on their own, account for; for each k."""
    target_models_share: float | None = None
    """The same of the target alone."""


class Bench(Document):
    """What was measured of a pair on a machine."""

    kind: ClassVar[str] = "bench"

    schema_name: Literal[
        "cascli.bench/1", "cascli.bench/1.1", "cascli.bench/1.2", "cascli.bench/1.3", "cascli.bench/1.4"
    ] = Field("cascli.bench/1.4", alias="schema")
    date: str | None = None
    """When it began, in UTC as ISO 8601 has it; None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None from Python."""
    pair: PairInfo
    copy_bytes_per_second: float
    """Bytes read and written by a plain copy in the device's memory: the ceiling."""
    profiles: list[Profile] = Field(min_length=1)
    """One for each context length, the shortest first."""
    synthetic: SyntheticRuns | None = None
    batches: list[Profile] = Field(default_factory=list)
    """One for each batch size that was asked for, after texts of one length."""
    batch_runs: list[BatchRun] = Field(default_factory=list)
    """At a chosen acceptance rate, for each batch size and k."""
    batch_memory: BatchMemory | None = None
    """Of the largest of these batches."""
    early_exit: ExitCurve | None = None
    """What the target's first layers foresee of its text, for every number of them; only with `--early-exit`."""
    environment: dict[str, str]

    def bandwidth_share(self, role: Literal["draft", "target"], profile: Profile) -> float | None:
        """Weights read per second in steps of one token, over the copy's rate; None if the size is not known."""
        model: ModelInfo | None = getattr(self.pair, role)
        if model is None or model.weight_bytes is None:
            return None
        step: float = getattr(profile, role)[1].median
        return model.weight_bytes / step / self.copy_bytes_per_second

    def to_frame(self) -> pandas.DataFrame:
        """One row a model, context and block length, with the columns of the csv: see docs/files.md.

        Raises:
            UsageError: pandas is not installed.
        """
        from cascli.analysis import tidy

        return tidy.frame(tidy.of_bench(self))

    @property
    def ratio_of_bytes(self) -> float | None:
        """Bytes of draft weights over those of the target: what c would be if reading weights were all."""
        draft, target = self.pair.draft and self.pair.draft.weight_bytes, self.pair.target.weight_bytes
        return draft / target if draft and target else None
