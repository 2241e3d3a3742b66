"""A run as plain data: who wrote which token and why, to and from JSON without loss.

Fields can be read as attributes or, in a notebook, by their JSON names: `run.metrics["num_rounds"]`.
A number that was not computed is None, never 0.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cascli import notebook
from cascli.errors import UsageError
from cascli.sampling.parameters import AUTO_DRAFTED

SHOWN = 60
"""Characters of an answer in a line about it."""
Event = Literal["accepted", "residual", "bonus", "draft", "target"]
FinishReason = Literal["eos", "length", "stop", "interrupted"]


def with_params(name: str, params: Mapping[str, Any]) -> str:
    """A strategy's name and parameters as one string."""
    values = ",".join(f"{key}={value}" for key, value in params.items())
    return f"{name}:{values}" if values else name


def by_block(params: Mapping[str, Any]) -> bool:
    """Whether a strategy with these parameters tests prefixes of a block of drafts, and not each token."""
    return params.get("verify") == "block"


def block_length(params: Mapping[str, Any]) -> int:
    """The most tokens that a strategy with these parameters drafts a round; 0 for one that does not draft."""
    k = params.get("k", 0)
    return AUTO_DRAFTED if k == "auto" else int(k)


def now() -> str:
    """This moment in UTC as ISO 8601 has it, to the second: `2026-11-28T03:35:05Z`."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


class Data(BaseModel):
    """Base of all parts of a trace."""

    # JSON has no infinity: it stands there as text, and is a number again when it is read.
    model_config = ConfigDict(frozen=True, populate_by_name=True, ser_json_inf_nan="strings")

    def __getitem__(self, name: str) -> Any:
        """Read a field by its JSON name."""
        return self.model_dump(by_alias=True)[name]


class Document(Data):
    """A part that is a JSON document of its own."""

    kind: ClassVar[str]
    """What it is called in an error."""

    def _repr_html_(self) -> str | None:
        """What a notebook shows of it."""
        return notebook.html_of(self)

    def to_json(self, indent: int | None = None) -> str:
        """Serialise to one JSON document; `indent` as in `json.dumps`."""
        return self.model_dump_json(by_alias=True, indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read one back.

        Raises:
            UsageError: the text is not one that cascli wrote.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in problem["loc"])
            raise UsageError(f"not a saved cascli {cls.kind}: {where or 'document'}: {problem['msg']}") from None


def _absent(value: object) -> bool:
    """Whether a field is left out of JSON."""
    return value is None


class Likely(Data):
    """One of the likeliest tokens of a model."""

    id: int
    text: str
    prob: float
    """At temperature 1."""


class Detail(Data):
    """What the models that were read at a token's position thought there; kept with `top`.

    Probabilities are at temperature 1, which is what rules test. What was not computed is None: the draft model where
    it was not asked, or where drafts come from elsewhere; the target where it was not asked.
    """

    q1: float | None = None
    """The draft model's probability of the token."""
    p1: float | None = None
    """The target's."""
    draft_rank: int | None = None
    """One more than there are tokens that the draft model finds likelier."""
    target_rank: int | None = None
    max_q1: float | None = None
    max_p1: float | None = None
    disagreement: float | None = None
    """TV(p, q) of the distributions that tokens are drawn from."""
    draft_top: list[Likely] | None = None
    """The draft model's likeliest tokens, the likeliest first."""
    target_top: list[Likely] | None = None


class TurnedDown(Data):
    """The draft model's token in whose place the target was asked, one token at a time; kept with `top`."""

    id: int
    text: str
    detail: Detail


class Drafted(Data):
    """A token that the draft model proposed for verification."""

    id: int
    text: str
    q: float
    p: float
    pi: float
    accept_prob: float
    """The probability that it passes its test: min(1, pi / q).

    With `verify=block` that the prefix of the round's drafts which ends with it passes: the longest that does stands,
    so that a token whose own prefix fails may stand, and this is no rate of acceptance.
    """
    accepted: bool
    """Whether it stands."""
    deferred: bool
    """Whether the deferral rule turned this token over to the target (never so without a rule)."""
    exact: bool | None = None
    """Whether the test of speculative decoding, min(1, p / q), would have kept it with the same random number."""
    detail: Detail | None = Field(None, exclude_if=_absent)
    """Only with `top`."""


class Emitted(Data):
    """A token of the answer."""

    id: int
    text: str
    event: Event
    q: float | None = None
    p: float | None = None
    tv: float | None = None
    """TV(pi, p) at this position: how far the distribution it follows is from the target's."""
    tv_to_draft: float | None = None
    """TV(pi, q): the probability that a token drafted here is rejected."""
    disagreement: float | None = None
    """TV(p, q): what that is without a rule."""
    kl: float | None = None
    """KL(pi || p) in nats; infinite where pi has a token that the target's truncated distribution has not."""
    overshoot: float | None = None
    """The largest pi / p of any token."""
    regret: float | None = None
    """How much less likely this token is to the target than its best one: log max p1 - log p1(x), in nats."""
    deferral: float | None = None
    """The q-mass that the rule gave to the target at this position, 0 or 1 for whole-distribution rules."""
    detail: Detail | None = Field(None, exclude_if=_absent)
    """Only with `top`; an accepted token's is its draft's."""
    turned_down: TurnedDown | None = Field(None, exclude_if=_absent)
    """Only with `top`, and only of a token-level cascade."""


class RoundSeconds(Data):
    """Time of one round: inside the two models, and in all."""

    draft: float = 0.0
    verify: float = 0.0
    total: float = 0.0
    """From the end of the round before, or the start of the run, to the end of this one."""


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
    """How far what a run sampled from was from both models, as sums over positions, so that runs can be added up.

    pi is the distribution that a token was drawn from, q the draft model's and p the target's.
    """

    positions: int
    """Positions at which pi, q and p are all known: the next three sums are over these, None where there are none."""
    tv_to_target: float | None
    """Of TV(pi, p)."""
    tv_to_draft: float | None
    """Of TV(pi, q)."""
    disagreement: float | None
    """Of TV(p, q)."""
    tokens: int
    """Tokens of the answer at which pi and p are known: the rest is over these."""
    kl: float
    """Sum of KL(pi || p), in nats, where it is finite: an estimate of the KL of whole answers."""
    infinite: int
    """At how many it is infinite, since pi has a token that p has not."""
    max_tv: float
    """The largest TV(pi, p)."""
    overshoot: float
    """The largest pi / p."""
    regret: float | None
    """Sum of log max p1 - log p1(x) of the tokens, in nats: what stands for the KL at temperature 0.

    None where it is not known of all of them: the target alone tells no probabilities at temperature 1."""
    kept_drafts: int
    """Drafted tokens that stand, of those that were tested against both rules."""
    out_of_head: int | None
    """Those of them that the exact test would have rejected with the same random number, and that the target finds less
    than a fifth as likely as its best token; None with `verify=block`, where tokens have no tests."""


class Metrics(Data):
    """The numbers of a run; definitions in docs/glossary.md."""

    num_rounds: int
    num_draft_tokens: int
    num_accepted_draft_tokens: int
    num_tested_draft_tokens: int | None = None
    """Those that were accepted, and the first rejected one of each round: what came after it was not tested.

    Not known with `verify=block`, where no token has a test of its own, nor in older documents.
    """
    draft_acceptance_rate: float | None
    """Accepted over drafted tokens."""
    rejection_rate: float | None = None
    """Rejected over tested tokens: of a whole distribution pi, an estimate of the mean TV(pi, q).

    Not known with `verify=block`.
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
    """Time per output token after the first round; None if there was no second one."""
    peak_memory_bytes: int | None
    draft_tokens_read: int | None = None
    target_tokens_read: int | None = None
    """How many tokens went through the model, the prompt and rejected drafts included."""
    shared_mass: float | None = None
    """q(I): the mean share of the draft model's mass, at temperature 1, that was on tokens which both models can say.

    None where the two have one tokenizer.
    """
    looped_tokens: int | None = None
    """Tokens of the answer that lie in a repetition; see `cascli.analysis.loops`. None in older documents."""
    distances: Distances | None = None
    """None where no token has them, and in older documents."""
    total_flops: float | None = None
    weight_bytes_read: float | None = None
    """Estimates that do not depend on hardware; see `cascli.analysis.cost`."""


class EncoderInfo(Data):
    """What an encoder-decoder reads a prompt with, once: its encoder, and the cross-attention's keys and values."""

    parameters: int
    """Weights that every token of the prompt is multiplied by."""
    weight_bytes: int
    """Bytes of these."""
    attention_width: int
    """Attention heads times head width, over the encoder's layers."""


class ModelInfo(Data):
    """One model of the pair, as it ran."""

    source: str
    dtype: str
    device: str
    parameters: int | None = None
    """Weights that every token is multiplied by: all matrices but the input embeddings."""
    output_parameters: int | None = None
    """Those of the output matrix, which only tokens whose logits are made are multiplied by."""
    output_rows: int | None = None
    """Its rows, one a token and padding: fewer where a draft model's head was cut, and the others are never drafted."""
    weight_bytes: int | None = None
    """What they take in memory, and so what one call reads."""
    attention_width: int | None = None
    """Attention heads times head width, over all layers."""
    encoder: EncoderInfo | None = None
    """What reads the prompt of an encoder-decoder; the sizes above are then those of its decoder."""
    cuda_graphs: bool | None = None
    """Whether its steps were replayed as CUDA graphs; unknown on a CPU, where they never are."""
    compiled: bool | None = None
    """Whether torch.compile made its steps; unknown on a CPU."""
    capture_seconds: float | None = None
    """What capturing and compiling its steps has taken since it was loaded; no part of any run's time."""


class PairInfo(Data):
    """The pair, as it ran."""

    name: str
    draft: ModelInfo | None
    """None for a target alone."""
    target: ModelInfo
    tokenizer_size: int
    masked_rows: tuple[int, int]
    """Rows of draft and target that stand for no token."""
    draft_tokenizer_size: int | None = None
    """Tokens of the draft's own tokenizer; None where it is the target's."""
    shared_tokens: int | None = None
    """Then: how many of the target's tokens it can say; the others are never drafted."""

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The models that there are by role, the draft first."""
        return {"target": self.target} if self.draft is None else {"draft": self.draft, "target": self.target}

    @property
    def limits(self) -> list[str]:
        """Why some tokens are never drafted, in words; nothing where all may be."""
        said = []
        rows = None if self.draft is None else self.draft.output_rows
        whole = (self.draft_tokenizer_size or self.tokenizer_size) + self.masked_rows[0]
        if rows is not None and rows < whole:
            said.append(f"the draft's head has {rows:,} of {whole:,} rows")
        if self.shared_tokens is not None:
            said.append(f"the draft can produce {self.shared_tokens:,} of the target's {self.tokenizer_size:,} tokens")
        return said

    @property
    def dtypes(self) -> str:
        """The precision of each model, in words."""
        return ", ".join(f"{role} {model.dtype}" for role, model in self.models.items())


class StepCosts(Data):
    """What a stop takes drafting and checking to cost, in steps of the target over one token."""

    c: float
    """A drafted token."""
    v: list[float] = Field(min_length=1)
    """A call of the target over 1, 2, .. tokens."""
    reads_last: bool = False
    """Whether every round has one draft step more, for the draft's distribution after the last token."""
    reads_if_kept: bool = False
    """Whether a round whose tokens have all passed has."""
    measured: bool
    """Whether the pair's steps were timed on this machine; else c is the ratio of the models' bytes, and every token
    beyond the first widens a call by a thirty-second step."""

    def round(self, drafted: int, kept: float = 0.0) -> float:
        """What a round of so many drafted tokens costs, which all pass with a chance of `kept`."""
        return self.c * (drafted + self.reads_last + self.reads_if_kept * kept) + self.v[drafted]


class ExitInfo(Data):
    """Where an early exit leaves the target."""

    layers: int
    """After so many."""
    depth: int
    """Of so many."""
    trained: str | None
    """How it is known that the checkpoint was trained to be left early; None for an untrained exit."""
    uncaptured: bool = False
    """Whether the pair's steps are captured graphs, and those of a split model are not."""

    @property
    def label(self) -> str:
        """What it is, in words."""
        kind = "untrained exit" if self.trained is None else f"trained exit ({self.trained})"
        slow = "; unlike the others here, its passes are not captured graphs" if self.uncaptured else ""
        return f"{kind}: after {self.layers} of the target's {self.depth} layers{slow}"


class SamplingInfo(Data):
    """The sampling settings of a run."""

    temperature: float
    top_k: int
    top_p: float
    seed: int
    """As it was given; the random numbers come from it, the prompt's id and the turn."""
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
    ] = Field("cascli.run/1.7", alias="schema")
    date: str | None = None
    """When the run began, in UTC as ISO 8601 has it; None in older documents."""
    command: str | None = None
    """The command line that asked for it, quoted for a shell; None from Python, and in a comparison, which has it."""
    strategy: str
    params: dict[str, Any]
    oracle: bool = False
    """Whether the strategy used what it could not know if it saved what it claims to save."""
    depends_on_rounds: bool = False
    """Whether its drafts, and with them its output distribution, depend on where rounds begin: it is then no function
    of the text before a token, and another one with another k."""
    earlier_texts: int | None = None
    """In how many earlier texts its drafts were looked for, with `remember`: it then depends on the order of the
    prompts. None where prompts do not matter to each other, and in older documents."""
    pair: PairInfo
    sampling: SamplingInfo
    prompt: str | None
    prompt_id: str = ""
    """Which prompt of a file it was; with `turn` and the seed it decides the random numbers."""
    category: str = ""
    """Of the prompt, where its file has one."""
    turn: int = 0
    """Which turn of its conversation, from 0 on."""
    system: str | None = None
    raw: bool = False
    """Whether the prompt went round the chat template."""
    batch_size: int = 1
    """How many answers were under way at once; from 2 on its seconds are its share of the time of all of them."""
    prompt_tokens: int
    prompt_token_ids: list[int] | None = None
    """What the models read, so that the run can be repeated without its conversation; None in older documents."""
    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    metrics: Metrics
    handover: Handover | None = None
    costs: StepCosts | None = Field(None, exclude_if=_absent)
    """By which a stop that needs to know decided; only with such a stop. With others the drafts may be others, and at a
    temperature above 0 the text too, which has the same distribution."""
    exit: ExitInfo | None = Field(None, exclude_if=_absent)
    """Where drafts left the target; only with `draft=early-exit`."""
    rounds: list[Round]
    environment: dict[str, str]
    """Versions, the device's name, torch's threads, the processors that the process may use, and `OMP_NUM_THREADS`."""

    def __repr__(self) -> str:
        """One line: `print(run.metrics)` has the numbers, `run.to_json(1)` everything."""
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
        """Whether prefixes of its blocks were tested, and not each drafted token."""
        return by_block(self.params)

    @property
    def emitted(self) -> list[Emitted]:
        """The tokens of the answer in order, with their events."""
        return [token for round_ in self.rounds for token in round_.emitted]


class Runs(Document):
    """Several runs: what `generate` writes of several prompts."""

    kind: ClassVar[str] = "list of runs"

    schema_name: Literal["cascli.runs/1"] = Field("cascli.runs/1", alias="schema")
    runs: list[Run] = Field(min_length=1)


def prompts_of(runs: Sequence[Run]) -> list[Hashable]:
    """What tells the prompts of runs apart, for each run: its prompt's id, or the place of its first turn.

    Args:
        runs: of one strategy, the turns of a prompt behind each other.
    """
    found: list[Hashable] = []
    for place, run in enumerate(runs):
        goes_on = run.turn > 0 and place > 0 and not runs[place - 1].prompt_id
        found.append(run.prompt_id or (found[-1] if goes_on else place))
    return found
