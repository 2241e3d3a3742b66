"""A run as plain data: which model wrote each token and why, converted to and from JSON without loss.

Fields can be read as attributes or, in a notebook, by their JSON names: `run.metrics["num_rounds"]`.
A number that was not computed is None, never 0.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cascli import notebook
from cascli.errors import UsageError
from cascli.sampling.parameters import AUTO_DRAFTED

SHOWN = 60
"""Maximum number of characters of an answer in its one-line summary."""
Event = Literal["accepted", "residual", "bonus", "draft", "target"]
FinishReason = Literal["eos", "length", "stop", "interrupted"]


def with_params(name: str, params: Mapping[str, Any]) -> str:
    """A strategy's name and parameters as one string."""
    values = ",".join(f"{key}={value}" for key, value in params.items())
    return f"{name}:{values}" if values else name


def params_of(spec: str) -> dict[str, str]:
    """The parameters of a string made by `with_params`."""
    return dict(part.partition("=")[::2] for part in spec.partition(":")[2].split(",") if part)


def values_of(spec: str) -> dict[str, Any]:
    """The parameters of a string made by `with_params`, as what their texts spell: they are written back unchanged."""
    return {key: _spelled(text) for key, text in params_of(spec).items()}


def _spelled(text: str) -> bool | float | str:
    """The number or truth value that is written in exactly this way; otherwise the text."""
    if text in ("True", "False"):
        return text == "True"
    for kind in (int, float):
        with suppress(ValueError):
            value: float = kind(text)
            return value if str(value) == text else text
    return text


def by_block(params: Mapping[str, Any]) -> bool:
    """Whether a strategy with these parameters tests prefixes of a block of drafts instead of single tokens."""
    return params.get("verify") == "block"


def block_length(params: Mapping[str, Any]) -> int:
    """Maximum number of tokens that a strategy with these parameters drafts per round; 0 if it does not draft."""
    k = params.get("k", 0)
    return AUTO_DRAFTED if k == "auto" else int(k)


def now() -> str:
    """The current time in UTC, in ISO 8601 format to the second: `2026-11-28T03:35:05Z`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Data(BaseModel):
    """Base of all parts of a trace."""

    # JSON has no infinity: it is written as text and read back as a number.
    model_config = ConfigDict(frozen=True, populate_by_name=True, ser_json_inf_nan="strings")

    def __getitem__(self, name: str) -> Any:
        """Read a field by its JSON name."""
        return self.model_dump(by_alias=True)[name]


class Document(Data):
    """A part that is a complete JSON document."""

    kind: ClassVar[str]
    """Name used in error messages."""

    @field_validator("schema_name", mode="before", check_fields=False)
    @classmethod
    def _of_known_minor(cls, value: object) -> object:
        return known_minor(value, cls.model_fields["schema_name"].default)

    def _repr_html_(self) -> str | None:
        """HTML that a notebook shows."""
        return notebook.html_of(self)

    def to_json(self, indent: int | None = None) -> str:
        """Serialise to one JSON document; `indent` as in `json.dumps`."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read a document from JSON.

        Raises:
            UsageError: the text is not a document of this kind written by cascli.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise UsageError(f"not a saved cascli {cls.kind}: {where or 'document'}: {problem['msg']}") from None


def known_minor(schema: object, newest: str) -> object:
    """The newest known schema for a later minor version of it, which only adds fields; any other one as it is."""
    given, known = (re.fullmatch(r"(.+/\d+)(?:\.(\d+))?", str(each)) for each in (schema, newest))
    if given is None or known is None or given[1] != known[1]:
        return schema
    return newest if int(given[2] or 0) > int(known[2] or 0) else schema


def _absent(value: object) -> bool:
    """Whether a field is left out of JSON."""
    return value is None


class Likely(Data):
    """One of a model's likeliest tokens."""

    id: int
    text: str
    prob: float
    """Probability of the token at temperature 1."""


class Detail(Data):
    """The models' predictions at a token's position; recorded only with `top`.

    Probabilities are at temperature 1, as rules test them. Values that were not computed are None: those of a model
    that was not run there, and those of the draft model if drafts come from another source.
    """

    q1: float | None = None
    """The draft model's probability of the token."""
    p1: float | None = None
    """The target's probability of the token."""
    draft_rank: int | None = None
    """Rank of the token under the draft model: 1 plus the number of likelier tokens."""
    target_rank: int | None = None
    max_q1: float | None = None
    max_p1: float | None = None
    disagreement: float | None = None
    """TV(p, q) of the distributions that tokens are drawn from."""
    draft_top: list[Likely] | None = None
    """The draft model's likeliest tokens, the likeliest first."""
    target_top: list[Likely] | None = None


class TurnedDown(Data):
    """A draft model's token that a token-level cascade replaced with the target's; recorded only with `top`."""

    id: int
    text: str
    detail: Detail


class Drafted(Data):
    """A token that was drafted for verification."""

    id: int
    text: str
    q: float
    p: float
    pi: float
    accept_prob: float
    """The probability that the token passes its test: min(1, pi / q).

    With `verify=block`, the probability that the prefix of the round's drafts ending with this token passes. The
    longest prefix that passes is kept, so a token whose own prefix fails may still be kept, and this is not an
    acceptance rate.
    """
    accepted: bool
    """Whether the token was kept."""
    deferred: bool
    """Whether the deferral rule deferred this token to the target; always false without a rule."""
    exact: bool | None = None
    """Whether the test of speculative decoding, min(1, p / q), would have kept it with the same random number."""
    detail: Detail | None = Field(None, exclude_if=_absent)
    """The models' predictions for this token; only with `top`."""


class Emitted(Data):
    """A token of the answer."""

    id: int
    text: str
    event: Event
    q: float | None = None
    p: float | None = None
    tv: float | None = None
    """TV(pi, p) at this position: how far the token's distribution is from the target's."""
    tv_to_draft: float | None = None
    """TV(pi, q): the probability that a token drafted here is rejected."""
    disagreement: float | None = None
    """TV(p, q): the probability, without a rule, that a token drafted here is rejected."""
    kl: float | None = None
    """KL(pi || p) in nats; infinite if pi includes a token that the target's truncated distribution does not."""
    overshoot: float | None = None
    """The largest pi / p of any token."""
    regret: float | None = None
    """How much less likely the target finds this token than its best one: log max p1 - log p1(x), in nats."""
    deferral: float | None = None
    """The q-mass that the rule deferred to the target at this position; 0 or 1 for whole-distribution rules."""
    detail: Detail | None = Field(None, exclude_if=_absent)
    """The models' predictions for this token, only with `top`; an accepted token has those of its draft."""
    turned_down: TurnedDown | None = Field(None, exclude_if=_absent)
    """The draft model's token that this one replaced; only with `top`, in a token-level cascade."""


class RoundSeconds(Data):
    """Time of one round: inside each of the two models, and in total."""

    draft: float = 0.0
    verify: float = 0.0
    total: float = 0.0
    """From the end of the previous round, or the start of the run, to the end of this one."""


class Round(Data):
    """One step of a strategy: what was drafted, and what it added to the answer."""

    drafted: list[Drafted] = []
    emitted: list[Emitted]
    seconds: RoundSeconds = RoundSeconds()


class Handover(Data):
    """What a sequence-level cascade decided about the draft model's whole answer."""

    score: str
    value: float
    threshold: float
    deferred: bool
    draft_token_ids: list[int]
    draft_text: str
    draft_finish_reason: FinishReason


class Seconds(Data):
    """Where the time of a run went; the four parts add up to the total."""

    total: float
    prefill: float
    draft: float
    verify: float
    other: float


class Distances(Data):
    """Distances of a run's output distributions from both models', summed over positions so that runs can be added up.

    pi is the distribution that a token was drawn from, q the draft model's and p the target's.
    """

    positions: int
    """Number of positions where pi, q and p are all known: `tv_to_target`, `tv_to_draft` and `disagreement` are sums
    over these, and None if there are none."""
    tv_to_target: float | None
    """Sum of TV(pi, p) over `positions`."""
    tv_to_draft: float | None
    """Sum of TV(pi, q) over `positions`."""
    disagreement: float | None
    """Sum of TV(p, q) over `positions`."""
    tokens: int
    """Number of answer tokens where pi and p are known: `kl`, `infinite`, `max_tv`, `overshoot` and `regret` are over
    these."""
    kl: float
    """Sum of KL(pi || p), in nats, where it is finite: an estimate of the KL of whole answers."""
    infinite: int
    """Number of tokens where KL(pi || p) is infinite because pi includes a token that p does not."""
    max_tv: float
    """The largest TV(pi, p)."""
    overshoot: float
    """The largest pi / p."""
    regret: float | None
    """Sum of log max p1 - log p1(x) over the tokens, in nats: used in place of the KL at temperature 0.

    None if it is not known for every token: `target` alone reports no probabilities at temperature 1."""
    kept_drafts: int | None
    """Number of kept drafts that were also tested with the exact rule; None with `verify=block` (0 in older
    documents)."""
    out_of_head: int | None
    """Number of kept drafts that the exact test would have rejected with the same random number and that the target
    finds less than a fifth as likely as its best token; None with `verify=block`, where tokens have no tests."""


class Metrics(Data):
    """The numbers of a run; definitions in docs/glossary.md."""

    num_rounds: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_tested_draft_tokens: int | None = None
    """Number of drafted tokens that were accepted, or rejected first in their round: those after them are not tested.

    None with `verify=block`, where tokens have no tests of their own, and in older documents.
    """
    draft_acceptance_rate: float | None
    """Accepted over drafted tokens."""
    rejection_rate: float | None = None
    """Rejected over tested tokens: an estimate of the mean TV(pi, q).

    None with `verify=block`.
    """
    mean_acceptance_length: float | None
    acceptance_histogram: list[int] | None
    per_position_acceptance: list[float] | None
    target_calls: int
    draft_calls: int
    target_calls_per_token: float | None
    draft_calls_per_token: float | None
    deferral_rate: float | None
    mean_tv_to_target: float | None
    max_tv_to_target: float | None
    lossless: bool | None
    seconds: Seconds
    tokens_per_second: float | None
    ttft_seconds: float | None
    seconds_per_token: float | None = None
    """Time per output token after the first round; None if there was no second round."""
    peak_memory_bytes: int | None
    draft_tokens_read: int | None = None
    target_tokens_read: int | None = None
    """Number of tokens that the target read, including the prompt and rejected drafts."""
    shared_mass: float | None = None
    """q(I): the mean share of the draft model's mass, at temperature 1, on tokens that both models can produce.

    None if both have the same tokenizer.
    """
    looped_tokens: int | None = None
    """Number of answer tokens that are part of a loop; see `cascli.analysis.loops`. None in older documents."""
    distances: Distances | None = None
    """Distances from both models' distributions; None if they are not known for any token, and in older documents."""
    total_flops: float | None = None
    weight_bytes_read: float | None = None
    """Bytes of weights read by the passes over this text, which in a batch also serve others: like `total_flops`, an
    estimate that does not depend on hardware, as if all experts of a mixture were active; see
    `cascli.analysis.cost`."""


class EncoderInfo(Data):
    """The part of an encoder-decoder that reads the prompt once: its encoder, and cross-attention's keys and values."""

    parameters: int
    """Number of weights that every token of the prompt is multiplied by."""
    weight_bytes: int
    """Size in bytes of the weights that every token of the prompt is multiplied by."""
    attention_width: int
    """Attention heads times head width, summed over the encoder's layers."""


class ModelInfo(Data):
    """One model of the pair, as it ran."""

    source: str
    dtype: str
    device: str
    parameters: int | None = None
    """Number of weights that every token is multiplied by: all matrices except the input embeddings; of a mixture, with
    all experts."""
    output_parameters: int | None = None
    """Number of weights in the output matrix, used only for tokens whose logits are computed."""
    output_rows: int | None = None
    """Rows of the output matrix, one per token plus padding; fewer if a draft model's head was cut, and tokens without
    a row are never drafted."""
    weight_bytes: int | None = None
    """Size of the weights in memory, in bytes, and so what one call reads."""
    attention_width: int | None = None
    """Attention heads times head width, summed over all layers; None where latent states are cached, whose expansion
    adds most of the work, so that `total_flops` is not estimated."""
    encoder: EncoderInfo | None = None
    """The part of an encoder-decoder that reads the prompt; the model's other sizes are then those of its decoder."""
    cuda_graphs: bool | None = None
    """Whether its steps were replayed as CUDA graphs; None on a CPU, where they never are."""
    compiled: bool | None = None
    """Whether its steps were compiled with torch.compile; None on a CPU."""
    capture_seconds: float | None = None
    """Seconds spent capturing and compiling its steps since it was loaded; not part of any run's time."""


class PairInfo(Data):
    """The pair, as it ran."""

    name: str
    draft: ModelInfo | None
    """The draft model; None for a target alone."""
    target: ModelInfo
    tokenizer_size: int
    masked_rows: tuple[int | None, int]
    """Number of output rows of the draft and of the target that represent no token; the draft's is None without a draft
    model (0 in older documents)."""
    draft_tokenizer_size: int | None = None
    """Number of tokens of the draft's own tokenizer; None if it uses the target's."""
    shared_tokens: int | None = None
    """Number of the target's tokens that a draft with its own tokenizer can produce; the others are never drafted. None
    if it uses the target's tokenizer."""

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The pair's models by role, the draft first."""
        return {"target": self.target} if self.draft is None else {"draft": self.draft, "target": self.target}

    @property
    def limits(self) -> list[str]:
        """Reasons why some tokens are never drafted, in words; empty if all can be."""
        reasons = []
        rows = None if self.draft is None else self.draft.output_rows
        whole = (self.draft_tokenizer_size or self.tokenizer_size) + (self.masked_rows[0] or 0)
        if rows is not None and rows < whole:
            reasons.append(f"the draft's head has {rows:,} of {whole:,} rows")
        if self.shared_tokens is not None:
            reasons.append(
                f"the draft can produce {self.shared_tokens:,} of the target's {self.tokenizer_size:,} tokens"
            )
        return reasons

    @property
    def dtypes(self) -> str:
        """The precision of each model, in words."""
        return ", ".join(f"{role} {model.dtype}" for role, model in self.models.items())


class StepCosts(Data):
    """The costs of drafting and checking that a stop assumes, in steps of the target over one token."""

    c: float
    """Cost of a drafted token."""
    v: list[float] = Field(min_length=1)
    """Cost of a call of the target over 1, 2, .. tokens."""
    reads_last: bool = False
    """Whether every round has one more draft step, for the draft's distribution after the last token."""
    reads_if_kept: bool = False
    """Whether a round whose drafts have all passed has one more draft step, for the draft's distribution after the
    last token."""
    measured: bool
    """Whether the pair's steps were timed on this machine; if not, c is the ratio of the models' bytes, and each token
    beyond the first adds 1/32 of a step to a call."""

    def round(self, drafted: int, kept: float = 0.0) -> float:
        """Cost of a round of this many drafted tokens, which all pass with probability `kept`."""
        return self.c * (drafted + self.reads_last + self.reads_if_kept * kept) + self.v[drafted]


class ExitInfo(Data):
    """Where an early exit leaves the target."""

    layers: int
    """Number of layers before the exit."""
    depth: int
    """Number of layers in the whole target."""
    trained: str | None
    """What identifies the checkpoint as trained for early exit; None for an untrained exit."""
    uncaptured: bool = False
    """Whether the steps of the split target are not captured as graphs although the pair's steps otherwise are."""

    @property
    def label(self) -> str:
        """Description of the exit, in words."""
        kind = "untrained exit" if self.trained is None else f"trained exit ({self.trained})"
        slow = "; unlike the others here, its passes are not captured graphs" if self.uncaptured else ""
        return f"{kind}: after {self.layers} of the target's {self.depth} layers{slow}"


class SamplingInfo(Data):
    """The sampling settings of a run."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    """The seed as given; random numbers are derived from it, the prompt's id and the turn."""
    max_new_tokens: int
    stop: list[str] = []


class Run(Document):
    """One answer to one prompt by one strategy, with its trace and its numbers."""

    kind: ClassVar[str] = "run"

    schema_name: Literal[
        "cascli.run/1",
        "cascli.run/1.1",
        "cascli.run/1.2",
        "cascli.run/1.3",
        "cascli.run/1.4",
        "cascli.run/1.5",
        "cascli.run/1.6",
        "cascli.run/1.7",
        "cascli.run/1.8",
    ] = Field("cascli.run/1.8", alias="schema")
    date: str | None = None
    """When the run began, in UTC and ISO 8601 format; None in older documents."""
    command: str | None = None
    """The command line that started the run, quoted for a shell; None from Python, and in a comparison, which has its
    own."""
    strategy: str
    params: dict[str, Any]
    oracle: bool = False
    """Whether the strategy used information that would not be available if it made the savings it claims."""
    depends_on_rounds: bool = False
    """Whether the drafts, and with them the output distribution, depend on where rounds begin. The distribution is then
    not a function of the preceding text alone, and changes with k."""
    earlier_texts: int | None = None
    """Number of earlier texts searched for drafts, with `remember`; the run then depends on the order of the prompts.
    None if prompts do not affect each other, and in older documents."""
    pair: PairInfo
    sampling: SamplingInfo
    prompt: str | None
    prompt_id: str = ""
    """Id of the prompt in its file; with `turn` and the seed it determines the random numbers."""
    category: str = ""
    """The prompt's category, if its file has one."""
    turn: int = 0
    """Turn of the conversation, counted from 0."""
    system: str | None = None
    raw: bool = False
    """Whether the prompt bypassed the chat template."""
    batch_size: int = 1
    """Number of answers decoded concurrently; with 2 or more, the run's seconds are its share of their total time."""
    prompt_tokens: int
    prompt_token_ids: list[int] | None = None
    """The ids that the models read, so that the run can be repeated without its conversation; None in older
    documents."""
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    metrics: Metrics
    handover: Handover | None = None
    costs: StepCosts | None = Field(None, exclude_if=_absent)
    """Step costs that the stop decided by; only with a stop that needs them. Other costs may give other drafts and, at
    a temperature above 0, another text from the same distribution."""
    exit: ExitInfo | None = Field(None, exclude_if=_absent)
    """The early exit at which drafts left the target; only with `draft=early-exit`."""
    rounds: list[Round]
    environment: dict[str, str]
    """Versions, the device's name, torch's threads, the number of processors available to the process, their name if
    it is known, and `OMP_NUM_THREADS` if set. A plug-in of another package is named with its package's version and a
    hash of its source, as in `plug-in rule my-rule`."""

    def __repr__(self) -> str:
        """One-line summary; `print(run.metrics)` shows the numbers, `run.to_json(1)` everything."""
        rate = self.metrics.tokens_per_second
        speed = "" if rate is None else f", {rate:.1f}/s"
        text = self.text if len(self.text) <= SHOWN else f"{self.text[:SHOWN]}…"
        return f"<Run {self.spec}: {len(self.token_ids)} tokens{speed}, ended by {self.finish_reason}: {text!r}>"

    __str__ = __repr__

    @property
    def spec(self) -> str:
        """The strategy with its parameters as one string."""
        return with_params(self.strategy, self.params)

    @property
    def by_block(self) -> bool:
        """Whether prefixes of blocks were tested instead of single drafted tokens."""
        return by_block(self.params)

    @property
    def emitted(self) -> list[Emitted]:
        """The tokens of the answer in order, with their events."""
        return [token for round_ in self.rounds for token in round_.emitted]


class Runs(Document):
    """Runs as `generate` writes them for a file of prompts, even if it has only one."""

    kind: ClassVar[str] = "list of runs"

    schema_name: Literal["cascli.runs/1"] = Field("cascli.runs/1", alias="schema")
    runs: list[Run] = Field(min_length=1)


def by_strategy(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Group runs by their strategy, in order of appearance."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.spec, []).append(run)
    return groups


def prompts_of(runs: Sequence[Run]) -> list[Hashable]:
    """Key that identifies each run's prompt: the prompt's id, or the position of its first turn.

    Args:
        runs: runs of one strategy, with the turns of a prompt in a row.
    """
    keys: list[Hashable] = []
    for place, run in enumerate(runs):
        continues = run.turn > 0 and place > 0 and not runs[place - 1].prompt_id
        keys.append(run.prompt_id or (keys[-1] if continues else place))
    return keys
