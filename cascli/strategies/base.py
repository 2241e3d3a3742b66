"""Base classes of strategies, which turn a session into a sequence of rounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cascli import drafters, plugins, rules, stops
from cascli.blame import blamed, label
from cascli.drafters import Drafter
from cascli.drafters.model import Model
from cascli.errors import UsageError, unknown
from cascli.models.calls import ALONE, ROLES, Calls, Role
from cascli.rules import Rule
from cascli.rules.base import OPTION, option
from cascli.sampling.parameters import AUTO_DRAFTED
from cascli.settings import DraftLength, first_problem
from cascli.stops import Stop
from cascli.stops.never import Never
from cascli.trace import with_params

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cascli.decoding.session import Session
    from cascli.models.gpu.graph_cache import GraphCache
    from cascli.models.pair import Pair
    from cascli.models.runner import Runner
    from cascli.sampling.parameters import Sampling
    from cascli.trace import Handover, Round, StepCosts

T = TypeVar("T")
MODEL = Model()
NEVER = Never()
BLOCK_FORMULA = (
    "; verify=block: keep the longest prefix that passes with S / (S + 1 - w), where w = min(1, w pi(x) / q(x)) over"
    " its tokens and S = sum max(0, w pi - q) after it (all k tokens with w), then norm(max(0, w pi - q))"
)
BLOCK_SOURCE = "; verify=block: Sun et al. 2024"


def validated(kind: type[T], values: Mapping[str, Any]) -> T:
    """Create a frozen dataclass from strings, validated by the types and ranges of its fields.

    Raises:
        UsageError: a missing or unknown key, a wrong type or a value out of range.
    """
    own = plugins.is_own(kind)
    plugin_fields = () if own else fields(kind)  # type: ignore[arg-type]  # T is a dataclass
    defaults = {each.name: each.default for each in plugin_fields if each.default not in (MISSING, None)}
    with blamed(kind):
        try:
            adapter: TypeAdapter[T] = _adapter(kind)  # type: ignore[arg-type]  # classes can be hashed
            return adapter.validate_python(defaults | dict(values))
        except ValidationError as error:
            key, message = first_problem(error, [])
            key = key.partition(".")[0]  # the rest says which of several types was tried
            raise UsageError(f"{key}: {message}" if key else f"{label(kind)}: {message}") from None


@lru_cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    """The adapter of a class; to make one takes a millisecond."""
    return TypeAdapter(kind)


class Part(NamedTuple):
    """A parameter that is itself a plug-in, such as `rule=opt`; the plug-in's own parameters are given next to it."""

    kind: str
    load: Callable[[str], type]
    """Returns the plug-in's class, given its name."""
    default: str
    shown: bool = True
    """Whether a strategy's display name includes the default."""


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
        """The name on the command line, taken from the file."""
        return plugins.name_of(type(self))

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name: each plug-in's name followed by its parameters, then the strategy's own.

        Parameters without a value and options at their default are left out.
        """
        parts, values = self.parts(), dict[str, Any]()
        for name, part in parts.items():
            plugin = getattr(self, name)
            named = plugins.name_of(type(plugin))
            if part.shown or named != part.default:
                values |= {name: named, **_field_values(plugin)}
        values |= {key: value for key, value in _field_values(self).items() if key not in parts}
        return {key: value for key, value in values.items() if value is not None}

    @property
    def spec(self) -> str:
        """The strategy with its parameters as one string, which `parse` reads."""
        return with_params(self.name, self.params)

    @property
    def needs_draft(self) -> bool:
        """Whether the strategy uses the pair's draft model."""
        return True

    @property
    def thinking_only(self) -> bool:
        """Whether the strategy needs to know where a text is thinking, which not every pair's tokens show."""
        return False

    @property
    def oracle(self) -> bool:
        """Whether the strategy uses information that would not be available if it made the savings it claims."""
        return False

    @property
    def remembers(self) -> int:
        """Number of its earlier texts searched for drafts; with 0, prompts do not affect each other."""
        return 0

    @property
    def depends_on_rounds(self) -> bool:
        """Whether the output distribution depends on where rounds begin, not only on the text."""
        return False

    @property
    def tentative(self) -> bool:
        """Whether the first answer may be withdrawn, and so should not be shown as the result."""
        return False

    @classmethod
    def parts(cls) -> dict[str, Part]:
        """The parameters that are themselves plug-ins, by name."""
        return {}

    @classmethod
    def keys(cls, values: Mapping[str, str]) -> list[str]:
        """The parameters that this strategy takes, given the values of some of them.

        Raises:
            UsageError: a rule, drafter or stop that does not exist, or one of whose parameters has the name of one
                that the strategy already has.
        """
        known = [field.name for field in fields(cls)]
        for name, part in cls.parts().items():
            plugin = values.get(name, part.default)
            for field in fields(part.load(plugin)):
                if field.name in known:
                    raise UsageError(
                        f"{part.kind} '{plugin}': its parameter '{field.name}' is also one of the strategy's"
                    )
                known.append(field.name)
        return known

    @classmethod
    def build(cls, values: Mapping[str, str]) -> Self:
        """Create the strategy from parameters given as strings, its plug-ins first.

        Raises:
            UsageError: an unknown key, a wrong type or a value out of range.
        """
        cls._refuse_unknown(values)
        rest: dict[str, Any] = dict(values)
        for name, part in cls.parts().items():
            kind = part.load(rest.pop(name, part.default))
            rest[name] = validated(kind, {key: rest.pop(key) for key in list(rest) if key in _names(kind)})
        return validated(cls, rest)

    @classmethod
    def _refuse_unknown(cls, values: Mapping[str, str]) -> None:
        known = cls.keys(values)
        for key in values:
            if key not in known:
                raise UsageError(unknown("parameter", key, known) if known else f"takes no parameters (got '{key}')")

    def calls(self, role: Role) -> Calls:
        """The calls it will make to one of the models; token by token by default."""
        return ALONE

    def capture(self, graphs: GraphCache, sampling: Sampling, logits: Tensor) -> None:
        """Capture the graphs that decoding will use, before the clock starts; `logits` `[1, V]` are an example."""
        del graphs, sampling, logits

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """The runners of the two models: the pair's own, unless something else drafts."""
        return {role: pair.runner(role) for role in ROLES}

    @property
    def needs_costs(self) -> bool:
        """Whether the strategy uses the cost of the two models' steps."""
        return False

    def costs(self, pair: Pair) -> StepCosts | None:
        """The step costs, for a strategy that uses them."""
        del pair
        return None

    @abstractmethod
    def decode(self, s: Session) -> Iterator[Round | Handover]:
        """Yield rounds until the session is finished; each adds its tokens to the session's text."""


@dataclass(frozen=True)
class RuleStrategy(Strategy):
    """A strategy whose output distribution is set by a deferral rule."""

    default_rule: ClassVar[str] = "chow"

    rule: Rule

    @property
    def thinking_only(self) -> bool:
        """Whether the rule applies only to thinking."""
        return self.rule.thinking_only

    @classmethod
    def parts(cls) -> dict[str, Part]:
        """`rule`: the deferral rule."""
        return {"rule": Part("rule", rules.load, cls.default_rule), **super().parts()}


@dataclass(frozen=True)
class Speculating(Strategy):
    """Rounds of at most k drafted tokens, which the target checks in one call, token by token or as blocks.

    `k=auto` leaves the length, up to `AUTO_DRAFTED`, to the stop: by default `rate`.
    """

    draft: Drafter = MODEL
    stop: Stop = NEVER
    k: DraftLength | Literal["auto"] = 4
    verify: Literal["token", "block"] = option("token")

    def __post_init__(self) -> None:
        """Reject rules and stops that need a confidence the drafter does not have, and `k=auto` without a stop.

        Raises:
            UsageError: a rule or a stop that reads the confidence of a draft that is certain of every token; `k=auto`
                with a stop that never ends a draft.
        """
        rule = self.verification_rule
        if self.draft.one_hot:
            sure = f"and drafts of '{plugins.name_of(type(self.draft))}' are certain of every token"
            if rule.reads_confidence:
                raise UsageError(
                    f"rule '{plugins.name_of(type(rule))}' reads how confident the draft is, {sure}; choose a rule"
                    " that reads the target, such as token-v3"
                )
            if self.stop.needs_confidence:
                raise UsageError(
                    f"stop '{plugins.name_of(type(self.stop))}' depends on how confident the draft is, {sure}; use"
                    " stop=rate or stop=heuristic"
                )
        if self.k == "auto" and isinstance(self.stop, Never):
            raise UsageError("k=auto: name the stop that sets a round's length, such as stop=rate,k=auto")

    @classmethod
    def build(cls, values: Mapping[str, str]) -> Self:
        """Create the strategy; with `k=auto`, the default stop is `rate`: no parameters, and it suits any drafter."""
        return super().build({"stop": "rate", **values} if values.get("k") == "auto" else values)

    @classmethod
    def parts(cls) -> dict[str, Part]:
        """`draft`: where drafted tokens come from; `stop`: what ends a draft before k tokens."""
        draft = Part("drafter", drafters.load, "model", shown=False)
        return {**super().parts(), "draft": draft, "stop": Part("stop", stops.load, "never", shown=False)}

    @property
    @abstractmethod
    def verification_rule(self) -> Rule:
        """The rule whose distribution drafted tokens are checked against."""

    @property
    def depends_on_rounds(self) -> bool:
        """Whether the drafter's q depends on where rounds begin, and the rule's pi on that q."""
        return not self.draft.by_prefix and self.verification_rule.reads_draft

    @property
    def remembers(self) -> int:
        """Number of earlier texts that its drafter searches."""
        return self.draft.remembers

    @property
    def longest(self) -> int:
        """Maximum number of tokens drafted per round."""
        return AUTO_DRAFTED if self.k == "auto" else self.k

    @property
    def by_block(self) -> bool:
        """Whether prefixes of a block are tested instead of single tokens, and the longest that passes is kept."""
        return self.verify == "block"

    @property
    def needs_draft(self) -> bool:
        """Whether the drafter uses the pair's draft model."""
        return self.draft.needs_model

    def calls(self, role: Role) -> Calls:
        """The calls of rounds of k or fewer drafted tokens; with a stop that reads the draft, one token per call."""
        if role == "target":
            return Calls(reads=[(n, n) for n in range(self.longest + 1, 0, -1)])
        if self.stop.reads is None:
            return self.draft.calls(self.verification_rule, self.longest)
        return self.draft.calls(self.verification_rule, 1)._replace(reads_base=True)

    def capture(self, graphs: GraphCache, sampling: Sampling, logits: Tensor) -> None:
        """Capture the decision of a round."""
        from cascli.decoding.speculation import capture_round

        capture_round(graphs, self.verification_rule, sampling, self.longest, logits, by_block=self.by_block)

    def runners(self, pair: Pair) -> Mapping[Role, Runner]:
        """The drafter's runners."""
        return self.draft.runners(pair)

    @property
    def needs_costs(self) -> bool:
        """Whether its stop uses step costs."""
        return self.stop.needs_costs

    def costs(self, pair: Pair) -> StepCosts | None:
        """The step costs of its rounds, if its stop uses them."""
        from cascli.models.step_costs import step_costs

        if not self.needs_costs:
            return None
        draft = self.runners(pair)["draft"]
        late = self.asks_late(draft, pair.device, captures=pair.graphs.captures)
        always = self.verification_rule.reads_draft and not late
        return step_costs(pair, self.longest, self.draft.cost, reads_last=always, reads_if_kept=late, exit=draft.exit)

    def asks_late(self, draft: Runner, device: torch.device, *, captures: bool) -> bool:
        """Whether its rule gets q after a block only once the whole block has passed: see `speculation.asks_late`."""
        from cascli.decoding.speculation import asks_late

        by_model = self.draft.needs_model and self.draft.by_prefix
        return by_model and asks_late(self.verification_rule, draft, device, captures=captures)

    def decode(self, s: Session) -> Iterator[Round]:
        """Yield rounds of speculation towards the rule's distribution."""
        from cascli.decoding.plugin_checks import beginning, proposing
        from cascli.decoding.speculation import speculate

        return speculate(
            s,
            self.verification_rule,
            self.longest,
            proposing(self.draft, self.draft.propose),
            by_block=self.by_block,
            stopping=beginning(self.stop, s.costs),
            on_host=self.draft.on_host,
            late=self.asks_late(s.draft.runner, s.text.device, captures=s.graphs.captures),
            planned=self.draft.one_hot and not self.draft.by_prefix,
        )


def _field_values(plugin: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, without options at their default."""
    return {
        each.name: value
        for each in fields(plugin)
        if (value := getattr(plugin, each.name)) != each.default or OPTION not in each.metadata
    }


def _names(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))
