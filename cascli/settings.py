"""The common options as data, and their order of precedence: flag, environment, config file, default."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Annotated, Any, Literal, Protocol, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from cascli.errors import UNPARSED, UsageError, suggestion, unknown
from cascli.files import printed
from cascli.sampling.parameters import MOST_DRAFTED

Dtype = Literal["auto", "float32", "bfloat16", "float16", "int8"]
Format = Literal["json", "jsonl", "md", "csv", "parquet", "html", "svg", "png", "pdf", "txt", "speculation-profile"]
TARGET = "target"
"""The strategy that all others are compared with: the target model alone."""
DEFAULT_STRATEGY = "speculative-cascade:rule=token-v3,alpha=0.3"
"""Uses k = 4 unless a flag, the environment or the pair's file sets it."""
TOP_OF_PAGE = 5
"""Default number of each model's likeliest tokens that an HTML page shows per position."""
WITHOUT_DRAFT = "draft=prompt-lookup"
"""Parameter added to the default strategy if the pair has no draft model."""


class HasDraft(Protocol):
    """A pair, or its file: whether it has a draft model, and whether that is only a head."""

    @property
    def draft(self) -> object | None:
        """The draft model; None if there is none."""

    @property
    def by_head(self) -> bool:
        """Whether the draft is an EAGLE-3 head."""


def default_strategy(pair: HasDraft) -> str:
    """The strategy used by default with this pair."""
    if pair.by_head:
        return "speculative"
    return DEFAULT_STRATEGY if pair.draft is not None else f"{DEFAULT_STRATEGY},{WITHOUT_DRAFT}"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _all_valid(texts: list[str]) -> list[str]:
    if not all(texts):
        raise ValueError("a stop text must not be empty; leave it out")
    if any("\ud800" <= char <= "\udfff" for text in texts for char in text):
        raise ValueError("a stop text is not valid UTF-8")
    return texts


Strings = Annotated[list[str], BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
Stops = Annotated[Strings, AfterValidator(_all_valid)]


class _Bool:
    """A bool where none is allowed: no type accepts it, and errors show its original value."""

    def __init__(self, value: bool) -> None:
        self._value = value

    def __repr__(self) -> str:
        return repr(self._value)


class Strict(BaseModel):
    """Values from a user's file or flags: unknown keys are errors, and `yes` is not a number (Python's True is 1)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _bools_are_no_numbers(cls, value: object, info: ValidationInfo) -> object:
        """Reject bools in fields that do not take them; nested models check their own fields."""
        clean = _without_bools(value)
        return value if clean is value or _takes_bools(cls.model_fields[str(info.field_name)].annotation) else clean


def _without_bools(value: object) -> object:
    """`value` itself, or a copy in which `_Bool` replaces any bools."""
    if isinstance(value, bool):
        return _Bool(value)
    if isinstance(value, list):
        items = [_without_bools(each) for each in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if isinstance(value, dict):
        pairs = {key: _without_bools(each) for key, each in value.items()}
        return value if all(pairs[key] is each for key, each in value.items()) else pairs
    return value


def _takes_bools(kind: Any) -> bool:
    """Whether a value of this type may be a bool, or contain one."""
    if kind in (bool, Any) or isinstance(kind, bool) or (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return True
    return any(map(_takes_bools, get_args(kind)))


DEVICE, SHA256 = r"^(auto|cpu|cuda(:\d+)?)$", r"^[0-9a-f]{64}$"
EXPECTED = {DEVICE: "expected auto, cpu, cuda or a card such as cuda:1", SHA256: "expected 64 hex digits"}
"""What to say of text that does not match a pattern."""
Device = Annotated[str, Field(pattern=DEVICE)]
Count = Annotated[int, Field(ge=1)]
Temperature = Annotated[float, Field(ge=0, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=0)]
TopP = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
DraftLength = Annotated[int, Field(ge=1, le=MOST_DRAFTED)]


class Settings(Strict):
    """A layer of common options by their long names with underscores; None means "not given here"."""

    strategy: Strings | None = None
    max_new_tokens: Count | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    num_speculative_tokens: DraftLength | None = None
    top: Annotated[int, Field(ge=0, le=20)] | None = None
    device: Device | None = None
    dtype: Dtype | None = None
    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    cuda_graphs: bool | None = None
    compile: bool | None = None
    system: str | None = None
    raw: bool | None = None
    stop: Stops | None = None
    prompts: str | None = None
    limit: Count | None = None
    json_output: Annotated[bool | None, Field(alias="json")] = None
    output: str | None = None
    format: Format | None = None
    quiet: bool | None = None
    verbose: bool | None = None
    color: Literal["auto", "always", "never"] | None = None
    offline: bool | None = None

    def given(self) -> dict[str, Any]:
        """The values that were set here, by field name."""
        return {key: value for key, value in self if value is not None}


WHOLE_ANSWERS = 256
"""Token limit that lets most answers to several prompts end on their own, so that their full cost is known."""


@dataclass(frozen=True)
class Resolved:
    """Every shared flag with its value after all layers; the values below are the built-in defaults."""

    strategy: Sequence[str] | None = None
    """None: the command's own default."""
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    num_speculative_tokens: int = 4
    top: int | None = None
    """None: depends on the output, see `kept`."""
    device: str = "auto"
    dtype: Dtype = "auto"
    threads: int | None = None
    """CPU threads. None: torch's own choice, or one for tiny models."""
    cuda_graphs: bool = True
    compile: bool = False
    system: str | None = None
    raw: bool = False
    stop: Sequence[str] = ()
    prompts: str | None = None
    limit: int | None = None
    json_output: bool = False
    output: str | None = None
    format: Format | None = None
    """None: from the suffix of `output`; see `cascli.render.export`."""
    quiet: bool = False
    verbose: bool = False
    color: Literal["auto", "always", "never"] = "auto"
    offline: bool = False
    sources: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value was given, as errors name it."""

    def source(self, key: str) -> str:
        """How an error names where a value was given; by its flag if that is not known."""
        return self.sources.get(key, f"--{_alias(key).replace('_', '-')}")

    def named(self, key: str) -> str:
        """How an error names a value and where it was given: `--output x.md`, or `my.yaml: defaults.output: x.md`."""
        source = self.source(key)
        return f"{source}{' ' if source.startswith('--') else ': '}{getattr(self, key)}"

    @property
    def kept(self) -> int:
        """Number of each model's likeliest tokens that the trace keeps per position; 0 by default, except for pages."""
        page = self.format == "html" or (self.format is None and (self.output or "").lower().endswith(".html"))
        default = TOP_OF_PAGE if page else 0
        return default if self.top is None else self.top


def with_whole_answers(settings: Resolved) -> Resolved:
    """Raise the token limit to at least `WHOLE_ANSWERS`: used for several prompts if no limit is given."""
    return replace(settings, max_new_tokens=max(settings.max_new_tokens, WHOLE_ANSWERS))


def resolve(*layers: Settings, spell: Sequence[Callable[[str], str]] = ()) -> Resolved:
    """Merge layers, the strongest first; a setting that no layer gives keeps its built-in default.

    `spell` has a function per layer that turns a key into how errors name a value of that layer.
    """
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer, spelled in reversed([*zip_longest(layers, spell)]):
        merged |= layer.given()
        sources |= {key: spelled(_alias(key)) for key in layer.given()} if spelled else {}
    return Resolved(**merged, sources=sources)


def _alias(key: str) -> str:
    """The name of a setting in files and flags."""
    field = Settings.model_fields.get(key)
    return (field and field.alias) or key


def checked(values: Mapping[str, Any], *, spell: Callable[[str], str] = str) -> Settings:
    """Validate values given by flag or environment; `spell` turns a key into how the user wrote it.

    Raises:
        UsageError: a value of the wrong type or out of range, with the key in the user's spelling.
    """
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        key, message = first_problem(error, Settings.model_fields)
        raise UsageError(f"{spell(key)}: {message}") from None


def variables() -> dict[str, str]:
    """Map the environment variable of each common option to the option's key."""
    keys = [field.alias or name for name, field in Settings.model_fields.items()]
    return {variable(key): key for key in keys}


def from_environment(environ: Mapping[str, str] | None = None) -> Settings:
    """Read `CASCLI_MAX_NEW_TOKENS` and similar variables; unset or empty ones are ignored.

    `CASCLI_STRATEGY` may contain several, separated by `;` or newlines, since commas are part of a strategy.

    `NO_COLOR` turns colour off, whatever a pair's file sets; a flag or `CASCLI_COLOR` overrides it.

    Raises:
        UsageError: a variable has a value that its flag would not accept.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {key: environ[name] for name, key in variables().items() if environ.get(name)}
    if environ.get("NO_COLOR"):
        values.setdefault("color", "auto")  # auto respects it: overrides a pair's file, not a flag
    if "strategy" in values:
        parts = (part.strip() for part in re.split(r"[;\n]", values["strategy"]))
        values["strategy"] = [part for part in parts if part]
    try:
        return checked(values)
    except UsageError as error:
        key, _, message = str(error).partition(": ")
        raise UsageError(f"{in_environment(key)}: {message}") from None


def variable(key: str) -> str:
    """The environment variable of a setting."""
    return f"CASCLI_{key.upper()}"


def in_environment(key: str) -> str:
    """How an error names a value from the environment."""
    return f"environment variable {variable(_alias(key))}"


def first_problem(error: ValidationError, known: Iterable[str]) -> tuple[str, str]:
    """The dotted key and a one-line message of the first problem in a pydantic error.

    If a key is missing, an unknown key next to it is reported instead, since it may be the same one misspelt.
    """
    problems = error.errors()
    siblings = (each for each in problems if each["loc"][:-1] == problems[0]["loc"][:-1])
    unknown_keys = [each for each in siblings if each["type"] == "extra_forbidden"]
    problem = unknown_keys[0] if problems[0]["type"] == "missing" and unknown_keys else problems[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return where, unknown("key", str(problem["loc"][-1]), known)
    if problem["type"] == "missing":
        return where, "this key is required"
    if problem["type"] == "model_type":
        return where, f"expected keys and values (got {printed(problem['input'])})"
    message = problem["msg"].removeprefix("Value error, ").partition(UNPARSED)[0]
    if problem["type"] == "string_pattern_mismatch":
        message = EXPECTED.get(problem["ctx"]["pattern"], message)
    hint = ""
    if problem["type"] == "literal_error":
        hint = suggestion(str(problem["input"]), re.findall(r"'([^']*)'", problem["ctx"]["expected"]))
    return where, f"{message} (got {printed(problem['input'])}){hint}"
