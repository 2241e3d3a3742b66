"""What a strategy is: it turns a session into rounds, one after the other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from cascli import plugins, rules
from cascli.errors import UsageError, unknown
from cascli.models.calls import ALONE, Calls, Write
from cascli.rules import Rule
from cascli.settings import first_problem
from cascli.trace import with_params

if TYPE_CHECKING:
    from torch import Tensor

    from cascli.decoding.session import Rehearses, Session
    from cascli.sampling.parameters import Sampling
    from cascli.trace import Handover, Round

T = TypeVar("T")
Role = Literal["draft", "target"]
ROLES: tuple[Role, ...] = ("draft", "target")
BlockLength = Annotated[int, Field(ge=1, le=64)]


def validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """Make a frozen dataclass from texts, by the types and ranges of its fields.

    Raises:
        UsageError: a missing or unknown key, a wrong type or a value out of range.
    """
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        key, message = first_problem(error, [])
        raise UsageError(f"{key}: {message}") from None


@dataclass(frozen=True)
class Strategy(ABC):
    """Base of all strategies; the fields of a subclass are its parameters."""

    __pydantic_config__ = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    lossless_when: ClassVar[str] = ""

    @property
    def name(self) -> str:
        """The name on the command line: the file's."""
        return plugins.name_of(type(self))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def spec(self) -> str:
        """The strategy with its parameters as one string, which `parse` reads."""
        return with_params(self.name, self.params)

    @property
    def oracle(self) -> bool:
        """Whether the strategy uses what it could not know if it saved what it claims to save."""
        return False

    @property
    def tentative(self) -> bool:
        """Whether the first answer may be withdrawn, so that it should not be shown as the result."""
        return False

    @classmethod
    def keys(cls, values: Mapping[str, str]) -> list[str]:  # noqa: ARG003 - strategies with a rule look at them
        """The parameters that this strategy takes, given the values of some of them."""
        return [field.name for field in fields(cls)]

    @classmethod
    def build(cls, values: Mapping[str, str]) -> Self:
        """Make the strategy from parameters as text.

        Raises:
            UsageError: an unknown key, a wrong type or a value out of range.
        """
        cls._refuse_unknown(values)
        return validated(cls, values)

    @classmethod
    def _refuse_unknown(cls, values: Mapping[str, str]) -> None:
        known = cls.keys(values)
        for key in values:
            if key not in known:
                raise UsageError(unknown("parameter", key, known) if known else f"takes no parameters (got '{key}')")

    def calls(self, role: Role) -> Calls:
        """What it will ask of one of the models; token by token unless a strategy says otherwise."""
        return ALONE

    def rehearse(self, compute: Rehearses, sampling: Sampling, logits: Tensor) -> None:
        """Let `compute` record what it will be asked for, before the clock starts; `logits` `[1, V]` are an example."""
        del compute, sampling, logits

    @abstractmethod
    def decode(self, s: Session) -> Iterator[Round | Handover]:
        """Yield rounds until the session is finished; each adds its tokens to the session's text."""


@dataclass(frozen=True)
class RuleStrategy(Strategy):
    """A strategy whose law is set by a deferral rule; the rule's parameters are given beside its own."""

    default_rule: ClassVar[str] = "chow"

    rule: Rule

    @property
    def params(self) -> dict[str, Any]:
        """The rule's name, its parameters, then the strategy's own."""
        name = plugins.name_of(type(self.rule))
        own = {field.name: getattr(self.rule, field.name) for field in fields(self.rule)}
        return {"rule": name} | own | {key: value for key, value in super().params.items() if key != "rule"}

    @classmethod
    def keys(cls, values: Mapping[str, str]) -> list[str]:
        """`rule`, the parameters of the rule that is named, then the strategy's own."""
        rule = rules.load(values.get("rule", cls.default_rule))
        return [*super().keys(values), *(field.name for field in fields(rule))]

    @classmethod
    def build(cls, values: Mapping[str, str]) -> Self:
        """Make the rule from its share of the values, then the strategy around it."""
        cls._refuse_unknown(values)
        kind = rules.load(values.get("rule", cls.default_rule))
        mine = [field.name for field in fields(kind)]
        rule = validated(kind, {key: value for key, value in values.items() if key in mine})
        rest = {key: value for key, value in values.items() if key not in mine and key != "rule"}
        return validated(cls, {**rest, "rule": rule})


class Speculating(ABC):
    """Rounds of k drafted tokens, judged by a rule."""

    k: int

    @property
    @abstractmethod
    def judge(self) -> Rule:
        """What the drafted tokens are judged by."""

    def calls(self, role: Role) -> Calls:
        """Those of rounds of k drafted tokens, fewer at the end of an answer."""
        rule = self.judge
        if role == "target":
            return Calls(reads=[(n, n) for n in range(self.k + 1, 0, -1)])
        # After a round whose drafts were all kept, a draft model that was not asked for the bonus has two to read.
        unread = (1,) if rule.reads_draft else (2, 1)
        blocks = [Write(m, self.k, rule.reads_draft) for m in unread]
        return Calls(writes=[*blocks, *(Write(m, 1) for m in unread)], reads_base=rule.reads_base)

    def rehearse(self, compute: Rehearses, sampling: Sampling, logits: Tensor) -> None:
        """Have the decision of a round recorded."""
        from cascli.decoding.speculation import rehearse

        rehearse(compute, self.judge, sampling, self.k, logits)

    def decode(self, s: Session) -> Iterator[Round]:
        """Rounds of speculation towards the rule's law."""
        from cascli.decoding.speculation import speculate

        yield from speculate(s, self.judge, self.k)
