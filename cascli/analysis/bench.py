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
    """Speculation at a chosen acceptance rate, compared with the target alone; the text it writes is meaningless."""

    acceptance: float
    tokens: int
    accounts: list[Explanation]
    """Account of the speed, for each k."""
    target_tokens_per_second: float = 0.0
    """Tokens per second of the target alone, interleaved with speculation: median, without reading the prompt."""
    tokens_per_second: list[float] = Field(default_factory=list)
    """Tokens per second of speculation for each k: median over runs, without reading the prompt."""
    models_share: list[float] = Field(default_factory=list)
    """Share of the time after the prompt that the two models' separately timed calls account for, for each k."""
    target_models_share: float | None = None
    """Share of the time after the prompt that separately timed target calls account for in runs of `target`."""


class Bench(Document):
    """Measurements of a pair on a machine."""

    kind: ClassVar[str] = "bench"

    schema_name: Literal[
        "cascli.bench/1",
        "cascli.bench/1.1",
        "cascli.bench/1.2",
        "cascli.bench/1.3",
        "cascli.bench/1.4",
        "cascli.bench/1.5",
        "cascli.bench/1.6",
    ] = Field("cascli.bench/1.6", alias="schema")
    date: str | None = None
    """Start time in UTC (ISO 8601); None in older documents."""
    command: str | None = None
    """The command line, quoted for a shell; None if called from Python."""
    pair: PairInfo
    copy_bytes_per_second: float
    """Bytes read and written per second by a plain copy in device memory: the upper limit."""
    profiles: list[Profile] = Field(min_length=1)
    """Step times for each context length, the shortest first."""
    synthetic: SyntheticRuns | None = None
    batches: list[Profile] = Field(default_factory=list)
    """Step times for each requested batch size, after texts of one length."""
    batch_runs: list[BatchRun] = Field(default_factory=list)
    """Batches decoded at a chosen acceptance rate, for each batch size and k."""
    batch_memory: BatchMemory | None = None
    """Peak memory of the largest batch in `batch_runs`."""
    early_exit: ExitCurve | None = None
    """How well the target's first n layers predict its text, for every n; only with `--early-exit`."""
    environment: dict[str, str]

    def bandwidth_share(self, role: Literal["draft", "target"], profile: Profile) -> float | None:
        """Return the weight bytes read per second in one-token steps, over the copy's rate; None if unknown."""
        model: ModelInfo | None = getattr(self.pair, role)
        if model is None or model.weight_bytes is None:
            return None
        step: float = getattr(profile, role)[1].median
        return model.weight_bytes / step / self.copy_bytes_per_second

    def to_frame(self) -> pandas.DataFrame:
        """Return one row per model, context and block length, with the columns of the csv; see docs/files.md.

        Raises:
            UsageError: pandas is not installed.
        """
        from cascli.analysis import tidy

        return tidy.frame(tidy.of_bench(self))

    @property
    def ratio_of_bytes(self) -> float | None:
        """Draft weight bytes over target weight bytes: what c would be if only reading weights took time."""
        draft, target = self.pair.draft and self.pair.draft.weight_bytes, self.pair.target.weight_bytes
        return draft / target if draft and target else None
