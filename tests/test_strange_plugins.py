"""Mistakes in other packages' plug-ins: each is an error that names the plug-in; none silently changes the law."""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from cascli import Pair, compare, generate, load_pair, plugins, rules, strategies
from cascli.analysis.comparison import Comparison
from cascli.audit.joint import rule_of
from cascli.blame import blamed, label
from cascli.decoding.speculation import Block
from cascli.drafters.base import Drafter
from cascli.errors import PairWarning, RunError, UsageError
from cascli.jobs.recording import record
from cascli.jobs.rule_curves import match, predicted_calls, rule_estimate
from cascli.jobs.usable import decide_once, left_out_if_it_fails, usable_rules, usable_stops
from cascli.render.console import screen
from cascli.rules.base import KeepRule, Rule
from cascli.rules.chow import Chow
from cascli.sampling.distributions import Dists, base
from cascli.settings import Resolved
from cascli.stops.base import Reading, Stop, Stopping
from cascli.strategies.base import Part, Strategy, validated
from cascli.strategies.speculative import Speculative
from cascli.strategies.speculative_cascade import SpeculativeCascade
from cascli.strategies.token_cascade import TokenCascade
from cascli.sweeps.plan import SweepPlan
from cascli.trace import Drafted, Emitted, Handover, Round, StepCosts
from tests import warm
from tests.laws.models import engine_law, reference_law
from tests.laws.tables import target
from tests.pairs import near, pair, prompts
from tests.reference.process import distance

HERE = "tests.test_strange_plugins"


@pytest.fixture(scope="module")
def loaded() -> Pair:
    return load_pair(pair(20, initializer_range=0.5))


def answer(loaded: Pair, strategy: Strategy, tokens: int = 9, temperature: float = 1.0) -> Any:
    return generate(loaded, prompt_ids=[1, 2], strategy=strategy, max_new_tokens=tokens, temperature=temperature)


def refused(loaded: Pair, strategy: Strategy, *said: str, kind: type[Exception] = RunError) -> None:
    with pytest.raises(kind) as told:
        answer(loaded, strategy)
    message = str(told.value)
    assert all(each in message for each in (HERE, *said)), message
    assert len(message.splitlines()) <= 2
    answer(loaded, Speculative(k=2))  # the pair is unchanged


# ---- drafters


@dataclass(frozen=True)
class Drafts(Drafter):
    """Drafts token 3 with certainty, and does something that it should not."""

    what: str = ""

    def propose(self, s: Any, n: int, rule: Rule) -> Any:
        q = torch.zeros(n, s.vocab).index_fill_(1, torch.tensor([3]), 1.0)
        ids = torch.full((n,), 3)
        if self.what == "ids" and isinstance(s.answer_ids, list):
            s.answer_ids.append(7)
        if self.what == "text" and s.length:
            s.text[0] = 5
        if self.what == "append":
            s.append(ids)
        made = {
            "none": lambda: None,
            "tuple": lambda: (ids, q, q),
            "list": lambda: Block([3] * n, q, q),  # type: ignore[arg-type]
            "float": lambda: Block(ids.double(), q, q),
            "bool": lambda: Block(ids, q.bool(), q),
            "no q1": lambda: Block(ids, q, None),  # type: ignore[arg-type]
            "nan q1": lambda: Block(ids, q, q * torch.nan),
            "long q1": lambda: Block(ids, q, torch.cat([q, q[:1]])),
            "raises": lambda: {}["key"],
            "pipe": lambda: _raise(BrokenPipeError(32, "Broken pipe")),
            "exit": lambda: sys.exit(0),
            "usage": lambda: _raise(UsageError("no licence")),
            "own": lambda: _raise(LicenceError("KEY", "/etc")),
            "ended": lambda: next(iter(())),
        }
        return made.get(self.what, lambda: Block(ids, q, q))()


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("text", "changed the answer"), ("append", "changed the answer"), ("none", "NoneType"), ("tuple", "tuple"),
        ("list", "three tensors"), ("float", "int64"), ("bool", "q must be probabilities"), ("no q1", "three tensors"),
        ("nan q1", "q1 has values that are not finite"), ("long q1", "q1 must have shape"),
        ("raises", "KeyError: 'key'"), ("pipe", "BrokenPipeError"),
        ("exit", "SystemExit: 0"), ("ended", "StopIteration"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_drafter_is_reported(loaded: Pair, what: str, said: str) -> None:
    refused(loaded, Speculative(draft=Drafts(what=what), k=3), "the drafter 'drafts'", said)


def test_errors_raised_by_a_plugin_keep_their_type(loaded: Pair) -> None:
    strategy = Speculative(draft=Drafts(what="usage"), k=3)
    refused(loaded, strategy, "the drafter 'drafts'", "no licence", kind=UsageError)
    strategy = Speculative(draft=Drafts(what="own"), k=3)
    refused(loaded, strategy, "the drafter 'drafts'", "KEY missing in /etc", kind=UsageError)


def test_a_drafter_cannot_write_into_the_answer(loaded: Pair) -> None:
    """The bug: drafters got the engine's own list; what they appended counted as decoded, and the rest was lossless."""
    changed, plain = (
        answer(loaded, Speculative(draft=Drafts(what=what), k=3), temperature=0.0) for what in ("ids", "")
    )
    assert changed.token_ids == plain.token_ids == answer(loaded, strategies.parse("target"), temperature=0).token_ids


# ---- rules


ASKED = [0]


@dataclass(frozen=True)
class Keeps(KeepRule):
    """Keeps tokens by q1, or makes a mistake."""

    what: str = ""
    capturable: ClassVar[bool] = False

    def keep(self, d: Dists) -> Any:
        ASKED[0] += 1
        shape = (*d.q.shape[:-1], 1)
        made: dict[str, Callable[[], Any]] = {
            "by turns": lambda: torch.full(shape, ASKED[0] % 2 == 0),
            "none": lambda: None,
            "float": lambda: torch.ones(shape),
            "halves": lambda: (d.q.mul_(0.5), d.q1 > 0.05)[1],
        }
        return made.get(self.what, lambda: d.q1 > 0.05)()


@dataclass(frozen=True)
class OwnPi(Keeps):
    """Claims to choose, but has a pi that does not follow from its choice."""

    @property
    def chooses(self) -> bool:
        return True

    def apply(self, d: Dists) -> torch.Tensor:
        return d.p

    def deferred(self, d: Dists) -> Any:
        masks = {
            "silent": None,
            "nan": torch.full((d.q.shape[0], 1), torch.nan),
            "wide": torch.ones(7, 5, dtype=torch.bool),
        }
        return masks.get(self.what, torch.zeros(d.q.shape[0], 1, dtype=torch.bool))


@pytest.mark.parametrize("strategy", [SpeculativeCascade, TokenCascade])
@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Keeps(what="by turns"), "pi is not what deferred makes"), (Keeps(what="none"), "NoneType"),
        (Keeps(what="float"), "Error: "), (OwnPi(), "pi is not what deferred makes"),
        (OwnPi(what="silent"), "deferred returns None"), (OwnPi(what="nan"), "deferred must be bool"),
        (OwnPi(what="wide"), "deferred must be bool"),
    ],
    ids=lambda value: getattr(value, "what", ""),
)  # fmt: skip
def test_a_mistake_in_a_rule_is_reported(loaded: Pair, strategy: Any, rule: Rule, said: str) -> None:
    refused(loaded, strategy(rule=rule), f"the rule '{plugins.name_of(type(rule))}'", said)


@dataclass(frozen=True)
class SaysItReadsNoTarget(KeepRule):
    reads_target: ClassVar[bool] = False

    def keep(self, d: Dists) -> torch.Tensor:
        if self.alpha > 0.5:  # another mistake: it writes into q, but decides correctly
            d.q.mul_(0.5)
            return torch.zeros(d.q.shape[0], 1, dtype=torch.bool)
        return (d.q - d.p).abs().amax(dim=-1, keepdim=True) > 1e-6


def test_a_rule_that_reads_the_target_undeclared_is_reported(loaded: Pair) -> None:
    """A cascade passes q as p until it calls the target; the bug: this rule's decisions were based on that."""
    refused(loaded, TokenCascade(rule=SaysItReadsNoTarget(alpha=0.2)), "reads_target is False")


def test_a_cascade_gives_copies_too(loaded: Pair) -> None:
    run = answer(loaded, TokenCascade(rule=SaysItReadsNoTarget(alpha=0.9)))
    assert run.metrics.deferral_rate == pytest.approx(1.0)  # the bug made it 0.5: the mass of the halved q


@dataclass(frozen=True)
class SaysItReadsNoDraft(Rule):
    reads_draft: ClassVar[bool] = False

    def apply(self, d: Dists) -> torch.Tensor:
        return (d.p + d.q) / 2


def test_a_rule_that_reads_the_draft_undeclared_is_reported(loaded: Pair) -> None:
    """The bug: at k = 1 the single row of q was added to both rows of p, including that of the bonus."""
    refused(loaded, SpeculativeCascade(rule=SaysItReadsNoDraft(), k=1), "reads_draft = False")


# ---- stops


@dataclass(frozen=True)
class Remembers(Stop):
    """Drafts nothing after a round whose last queried token was unlikely, even if that token was rejected."""

    reads: ClassVar[Reading | None] = "chance"

    def begin(self, costs: StepCosts | None) -> Stopping:
        return _Remembering()


class _Remembering(Stopping):
    reads: ClassVar[Reading | None] = "chance"

    def __init__(self) -> None:
        self.last, self.kept = 1.0, list[Any]()

    def most(self, n: int) -> int:
        return n if self.last >= 0.5 else 0

    def before_step(self, drawn: Sequence[float]) -> bool:
        self.kept.append(drawn)  # the list must not grow afterwards
        if drawn:
            self.last = drawn[-1]
        return True


@pytest.mark.parametrize(("vocab", "layers", "length"), [(2, 1, 5), (3, 1, 4)])
def test_a_stop_that_remembers_rejected_drafts_does_not_change_the_law(vocab: int, layers: int, length: int) -> None:
    """The bug: laws were off by 0.017 and 0.005, because a rejected token decided where the next round ends."""
    found = engine_law(Speculative(stop=Remembers(), k=3), length, vocab, layers)
    assert distance(found, reference_law(target("exact"), length, vocab, layers)) < 1e-12


@dataclass(frozen=True)
class Stops(Stop):
    reads: ClassVar[Reading | None] = "best"
    what: str = ""

    def begin(self, costs: StepCosts | None) -> Any:
        made = {"nothing": None, "class": Stopping, "object": object(), "reads": Stopping()}
        if self.what == "raises":
            raise TypeError("boom")
        return made.get(self.what, _Wrong(self.what))


class LicenceError(UsageError):
    def __init__(self, key: str, where: str) -> None:
        super().__init__(f"{key} missing in {where}")


class _Wrong(Stopping):
    reads: ClassVar[Reading | None] = "best"

    def __init__(self, what: str) -> None:
        self.what = what
        self.lock = threading.Lock() if what == "locks" else None

    def __len__(self) -> int:
        return 0  # falsy: it was mistaken for no Stopping

    def most(self, n: int) -> Any:
        return {"half": 2.5, "nan": float("nan"), "true": True, "zero": 0, "numpy": np.int64(2)}.get(self.what, n)

    def before_step(self, drawn: Sequence[float]) -> Any:
        return {"forgotten": None, "word": "no", "torch": torch.tensor(True)}.get(self.what, True)

    def before_draw(self, drawn: Sequence[float], here: float) -> Any:
        return None if self.what == "no draw" else isinstance(drawn, list)

    def learn(self, seen: Sequence[float], kept: int, *, rejected: bool) -> None:
        if self.what == "learns":
            raise ValueError("boom")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nothing", "begin must return a Stopping"), ("class", "begin must return"), ("object", "begin must return"),
        ("raises", "TypeError: boom"), ("half", "most must return"), ("nan", "most must return"),
        ("true", "most must return"), ("forgotten", "before_step must return True or False"),
        ("word", "before_step must return"), ("no draw", "before_draw must return"), ("learns", "ValueError: boom"),
        ("locks", "cannot be copied"), ("reads", "reads None, but the stop declares 'best'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_stop_is_reported(loaded: Pair, what: str, said: str) -> None:
    refused(loaded, Speculative(stop=Stops(what=what), k=3), "the stop 'stops'", said)


def test_a_falsy_stop_is_still_used(loaded: Pair) -> None:
    assert answer(loaded, Speculative(stop=Stops(what="zero"), k=3)).metrics.num_draft_tokens == 0
    assert answer(loaded, Speculative(stop=Stops(what="torch"), k=3)).metrics.num_draft_tokens > 0
    assert max(len(step.drafted) for step in answer(loaded, Speculative(stop=Stops(what="numpy"), k=3)).rounds) == 2


def test_a_stop_that_would_never_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="before_step is what is called"):

        class Deaf(Stopping):
            reads: ClassVar[Reading | None] = "chance"

            def before_draw(self, drawn: Sequence[float], here: float) -> bool:
                return False


# ---- strategies

CHOW = Chow()


@dataclass(frozen=True)
class Writes(Strategy):
    """Writes with the draft model, and reports a wrong round."""

    what: str = ""
    k: int = 4

    @property
    def tentative(self) -> bool:
        return self.what == "undecided"

    def decode(self, s: Any) -> Any:
        if self.what == "returns none":
            return None
        return self._rounds(s)

    def _rounds(self, s: Any) -> Iterator[Any]:
        if self.what == "nothing":
            return
        while not s.finished:
            model = s.target if self.what in ("target", "raises late") else s.draft
            if self.what == "raises late" and s.length == 3:
                raise KeyError("late")
            ids = [int(s.draw(s.warp(model.read(s.length))))]
            if self.what != "not appended":
                s.append(torch.tensor(ids))
            if self.what == "empty":
                s.length -= 1
                ids = []
            given: dict[str, Any] = {"event": "draft"}
            given |= {
                "claims": {"tv": 0.0}, "nan": {"q": float("nan")}, "beyond": {"deferral": 5.0}, "below": {"p": -0.5},
                "endless": {"kl": float("inf")}, "event": {"event": "wrong"},
            }.get(self.what, {})  # fmt: skip
            told = {"other": [19 - ids[0]] if ids else [], "outside": [99]}.get(self.what, ids)
            emitted = [Emitted(id=each, text="x", **given) for each in told]
            drafts = [
                Drafted(id=told[0], text="x", q=1, p=1, pi=1, accept_prob=1, accepted=True, deferred=False)
                for _ in range({"drafts": 1, "many": 9}.get(self.what, 0))
            ]
            made: dict[str, Any] = {
                "emitted": emitted, "int": 3, "handover":
                Handover(score="s", value=0, threshold=1, deferred=True, draft_token_ids=[], draft_text="",
                         draft_finish_reason="eos"),
            }  # fmt: skip
            yield made.get(self.what, Round(emitted=emitted, drafted=drafts))
            if self.what == "ends":
                return
            if self.what == "reason":
                s.finish_reason = "eos"
            if self.what == "rewrites" and s.length > 1:
                s.text[0] = 5
        if self.what == "goes on":
            yield Round(emitted=[Emitted(id=1, text="x", event="draft")])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("returns none", "decode must yield rounds"), ("nothing", "ended before the answer"), ("ends", "ended before"),
        ("not appended", "appended to the session's text"), ("other", "appended to the session's text"),
        ("outside", "outside the vocabulary"), ("empty", "must add a token"), ("claims", "without calling it"),
        ("nan", "q = nan"), ("beyond", "deferral = 5"), ("below", "p = -0.5"), ("endless", "without calling it"),
        ("event", "Emitted.event"), ("emitted", "yielded list"), ("int", "yielded int"), ("handover", "Handover"),
        ("drafts", "accepted drafts"), ("many", "its parameter k allows 4"), ("raises late", "KeyError: 'late'"),
        ("reason", "set s.finish_reason"), ("rewrites", "appended to the session's text"),
        ("goes on", "s.finished was true"), ("undecided", "yielded no Handover"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_strategy_is_reported(loaded: Pair, what: str, said: str) -> None:
    refused(loaded, Writes(what=what), "the strategy 'writes'", said)


def test_a_correct_strategy_runs_without_an_error(loaded: Pair) -> None:
    plain, mine = answer(loaded, strategies.parse("draft")), answer(loaded, Writes())
    assert mine.token_ids == plain.token_ids and mine.metrics.lossless is None


@dataclass(frozen=True)
class Scheduled(Writes):
    """A strategy whose `rule` is none of the rules."""

    rule: str = "parity"


def test_only_a_rule_has_a_law() -> None:
    assert rule_of(TokenCascade(rule=CHOW)) is CHOW and rule_of(Scheduled()) is None


@dataclass(frozen=True)
class Asks(Writes):
    """A strategy whose property fails before it is run."""

    @property
    def needs_draft(self) -> bool:
        raise KeyError("boom")


def test_an_error_of_a_property_is_reported_before_anything_runs(loaded: Pair) -> None:
    """The bug: `compare` checked its strategies before it would have named the one that fails."""
    with pytest.raises(RunError, match=f"the strategy 'asks' of {HERE}: KeyError: 'boom'"):
        compare(loaded, prompt_ids=[1, 2], strategies=["target", Asks()], max_new_tokens=2)


@dataclass(frozen=True)
class InThrees(Strategy):
    """Three of the target's tokens per round, which is too many when two are left."""

    heeds: bool = True

    def decode(self, s: Any) -> Iterator[Round]:
        while not s.finished:
            ids = []
            for _ in range(min(3, s.remaining) if self.heeds else 3):
                logits = s.target.read(s.length)
                token = s.draw(base(logits))
                s.append(token)
                ids.append(int(token))
            yield Round(emitted=[Emitted(id=each, text="x", event="target", tv=0.0) for each in ids])


def test_a_round_longer_than_the_limit_is_an_error(loaded: Pair) -> None:
    assert answer(loaded, InThrees(), 8).token_ids == answer(loaded, strategies.parse("target"), 8).token_ids
    with pytest.raises(RunError, match="the strategy 'in-threes'"):
        answer(loaded, InThrees(heeds=False), 8)


@dataclass(frozen=True)
class OfTwoParts(Strategy):
    """A strategy with a plug-in parameter, and code that runs after the last round."""

    first: Rule = CHOW
    limit: int = None  # type: ignore[assignment]

    @classmethod
    def parts(cls) -> dict[str, Part]:
        return {"first": Part("rule", rules.load, "chow")}

    def decode(self, s: Any) -> Iterator[Round]:
        while not s.finished:
            token = s.draw(base(s.target.read(s.length)))
            s.append(token)
            yield Round(emitted=[Emitted(id=int(token), text="x", event="target", tv=0.0)])
        LAST_WORDS.append(self.first)


LAST_WORDS: list[Rule] = []


def test_correct_plugins_are_left_alone(loaded: Pair) -> None:
    assert plugins._checked(OfTwoParts) is OfTwoParts
    assert answer(loaded, OfTwoParts(), 5).token_ids == answer(loaded, strategies.parse("target"), 5).token_ids
    assert [CHOW] == LAST_WORDS
    assert validated(OfTwoParts, {}).limit is None


@dataclass(frozen=True)
class WantsMany(KeepRule):
    """Needs a vocabulary of at least 40 tokens, and writes into its arguments."""

    def keep(self, d: Dists) -> torch.Tensor:
        best = d.p1.topk(40).values
        d.q1.mul_(0.5)
        return best[:, :1] > 0.5


def test_rules_cannot_change_the_recorded_distributions() -> None:
    """The bug: a rule that writes into its arguments changed the numbers of the rules after it."""
    seen = record(near(400), prompts("one", "two"), Resolved(max_new_tokens=12, temperature=1.0), 4)
    kept = [each.clone() for each in seen.d]
    decide_once(WantsMany())
    estimate = rule_estimate("wants-many", WantsMany(), seen, 4, 1.0)  # type: ignore[arg-type]
    predicted_calls(WantsMany(), seen, 4)
    assert all(torch.equal(one, other) for one, other in zip(seen.d, kept, strict=True))
    assert 0 < estimate.acceptance <= 1


# ---- parameters, names, and what is installed

CLASSES = """
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar
import os
import torch
from pydantic import BeforeValidator, Field
from cascli.rules.base import Dial, KeepRule, Rule
from cascli.stops.base import Stop, Stopping
from cascli.strategies.base import Strategy

class Base:
    def keep(self, d):
        return d.q1 > 0.5

@dataclass(frozen=True)
class Good(Base, KeepRule):
    pass

@dataclass(frozen=True)
class Raises(KeepRule):
    def keep(self, d):
        raise ValueError("boom")

ASKED = [0]

@dataclass(frozen=True)
class Late(KeepRule):
    def keep(self, d):
        ASKED[0] += 1
        if ASKED[0] > 30:
            raise ValueError("boom")
        return d.q1 > 2

@dataclass(frozen=True)
class Wide(KeepRule):
    def keep(self, d):
        if d.q.shape[-1] < 100:
            raise ValueError("a vocabulary of 100 tokens is wanted")
        return d.q1 > 0.1

@dataclass(frozen=True)
class Twice(Base, KeepRule):
    pass

@dataclass(frozen=True)
class Dialled(Base, KeepRule):
    dial: ClassVar[Dial] = Dial("beta", 0, 1)

@dataclass(frozen=True)
class Tupled(Base, KeepRule):
    dial: ClassVar[tuple] = ("alpha", 0, 1)

@dataclass(frozen=True)
class Hinted(Base, KeepRule):
    least: "NoSuch" = 1

@dataclass(frozen=True)
class Licensed(Base, KeepRule):
    def __post_init__(self):
        os.environ["NO_SUCH_LICENCE"]

@dataclass(frozen=True)
class Valued(Base, KeepRule):
    def __post_init__(self):
        raise ValueError("no licence")

class Two(tuple):
    def __str__(self):
        return "/".join(map(str, self))

def halves(text):
    return Two(map(float, text.split("/"))) if isinstance(text, str) else text

@dataclass(frozen=True)
class Vector(KeepRule):
    dial: ClassVar[Dial] = Dial("alpha", -1, 1)
    weights: Annotated[Any, BeforeValidator(halves)] = "0.5/0.5"
    def keep(self, d):
        first, second = self.weights
        return first * d.best("q1") + second * d.best("p1") >= 1 - self.alpha

@dataclass(frozen=True)
class Tuples(Vector):
    weights: Annotated[tuple[float, float], BeforeValidator(halves)] = "0.5/0.5"

@dataclass(frozen=True)
class Doubles(Base, KeepRule):
    least: Annotated[float, BeforeValidator(lambda value: 2 * float(value))] = 1

@dataclass(frozen=True)
class Pair(Base, KeepRule):
    weights: tuple[float, float] = (0.5, 0.5)

@dataclass(frozen=True)
class Lengths(Base, KeepRule):
    k: int = 2

@dataclass(frozen=True)
class FarDial(Base, KeepRule):
    dial: ClassVar[Dial] = Dial("n", 0, 100)
    n: Annotated[int, Field(ge=1)] = 5

@dataclass(frozen=True)
class Hot(Base, KeepRule):
    temperatures: float = 2.0

@dataclass(frozen=True)
class LongStop(Stop):
    k: int = 2

@dataclass(frozen=True)
class Scheduled(Strategy):
    rule: str = "parity"
    def decode(self, s):
        yield

@dataclass(frozen=True)
class Toggled(Strategy):
    fast: bool = False
    def decode(self, s):
        yield

@dataclass(frozen=True)
class BadBegin(Stop):
    def begin(self, costs):
        raise TypeError("boom")

@dataclass(frozen=True)
class Wanting(Stop):
    a: int

@dataclass(frozen=True)
class Target(Strategy):
    name: str = "target"
    def decode(self, s):
        yield

@dataclass(frozen=True)
class Comma(Strategy):
    a: str = "x,y=z"
    def decode(self, s):
        yield

@dataclass(frozen=True)
class Reads(Stop):
    reads: str = "best"
"""
POINTS = """
[cascli.rules]
good = odd:Good
raises = odd:Raises
late = odd:Late
wide = odd:Wide
dialled = odd:Dialled
tupled = odd:Tupled
hinted = odd:Hinted
licensed = odd:Licensed
valued = odd:Valued
leaves = odd_leaves:X
vector = odd:Vector
tuples = odd:Tuples
doubles = odd:Doubles
pair = odd:Pair
lengths = odd:Lengths
far-dial = odd:FarDial
hot = odd:Hot
chow = odd:Good
UP er = odd:Good
[cascli.stops]
bad-begin = odd:BadBegin
wanting = odd:Wanting
reading = odd:Reads
gone = odd:Nothing:x
long-stop = odd:LongStop
[cascli.strategies]
hides = odd:Target
comma = odd:Comma
scheduled = odd:Scheduled
toggled = odd:Toggled
lost = odd_missing:X
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment with a package full of mistakes, and two others that share the name of a rule."""
    for name, points in (("odd", POINTS), ("even", "[cascli.rules]\ngood-too = odd:Good\ntwice = odd:Other\n")):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points)
    third = tmp_path / "third-1.0.dist-info"
    third.mkdir()
    (third / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1.0\n")
    (third / "entry_points.txt").write_text("[cascli.rules]\ntwice = odd:Twice\n")
    (tmp_path / "odd.py").write_text(CLASSES)
    (tmp_path / "odd_leaves.py").write_text("import sys\nsys.exit(0)\n")
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_broken_plugins_do_not_hide_the_others_from_the_list(installed: dict[str, str]) -> None:
    done = warm.run("strategies", env=installed)
    assert done.returncode == 0 and "token-v3" in done.stdout and "good" in done.stdout and "adaedl" in done.stdout
    said = " ".join(done.stderr.split())
    for each in (
        "'chow' of odd:Good is ignored: cascli has its own of that name", "'UP er' of odd:Good is ignored",
        "rule 'leaves' of odd_leaves:X: SystemExit: 0", "the rule 'hinted' of odd: NameError",
        "both have this name; uninstall one of their packages", "'name' is an attribute that cascli reads",
        "a: a parameter's default must be a number", "odd: Pair: weights: a parameter's default must be a number",
        "odd: Hot: 'temperatures' is a name that cascli itself uses",
        "odd: Scheduled: 'rule' is a name that cascli itself uses", "'reads' is an attribute that cascli reads",
        "strategy 'lost' of odd_missing:X: ModuleNotFoundError",
    ):  # fmt: skip
        assert each in said, (each, said)
    one = warm.run("strategies", "chow", env=installed)
    assert one.returncode == 0 and "speculative-cascade:rule=chow" in one.stdout


@pytest.mark.parametrize("flags", [[], ["--json"], ["-q"]])
def test_a_broken_plugin_that_was_asked_for_is_an_error(installed: dict[str, str], flags: list[str]) -> None:
    """The others that were asked for are shown nevertheless."""
    done = warm.run("strategies", "leaves", "opt", *flags, env=installed)
    assert done.returncode == 2 and "speculative-cascade:rule=opt" in done.stdout
    assert done.stderr.splitlines()[-1] == "cascli: rule 'leaves' of odd_leaves:X: SystemExit: 0"
    for name, said in (("hinted", "the rule 'hinted' of odd: NameError"), ("lost", "strategy 'lost' of odd_missing:X")):
        done = warm.run("strategies", name, *flags, env=installed)
        assert (done.returncode, done.stdout) == (2, "") and f"cascli: {said}" in done.stderr


@pytest.mark.parametrize(
    ("strategy", "code", "said"),
    [
        ("speculative-cascade:rule=raises", 3, "the rule 'raises' of odd: ValueError: boom"),
        ("speculative-cascade:rule=licensed", 3, "the rule 'licensed' of odd: KeyError: 'NO_SUCH_LICENCE'"),
        ("speculative-cascade:rule=valued", 2, "the rule 'valued' of odd: no licence"),
        ("speculative-cascade:rule=twice", 2, "both have this name; uninstall one"),
        ("speculative:stop=bad-begin,k=auto", 3, "the stop 'bad-begin' of odd: TypeError: boom"),
        ("hides", 2, "'name' is an attribute"),
    ],
)
def test_a_broken_plugin_requested_by_name_is_explained(
    installed: dict[str, str], strategy: str, code: int, said: str
) -> None:
    done = warm.run("generate", "hi", "-c", "tiny-random", "-s", strategy, "--max-new-tokens", "3", env=installed)
    assert done.returncode == code and said in done.stderr and len(done.stderr.splitlines()) <= 2, done.stderr


@pytest.fixture
def offered(installed: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The same packages, in this process."""
    del installed
    monkeypatch.syspath_prepend(tmp_path)
    plugins._offered.cache_clear()
    yield
    plugins._offered.cache_clear()
    for name in ("odd", "odd_leaves"):
        sys.modules.pop(name, None)


def test_a_value_that_cannot_be_written_is_refused(offered: None) -> None:
    """The bug: the answers were made, and then neither tables nor a resumed sweep could read what had made them."""
    for text, said in (
        ("token-cascade:rule=tuples", "is written as 'token-cascade:rule=tuples,alpha=0.3,weights=(0.5, 0.5)', which"),
        ("token-cascade:rule=doubles", "least=2.0', which is read as 'token-cascade:rule=doubles,alpha=0.3,least=4.0'"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            strategies.parse(text)
    assert strategies.parse("token-cascade:rule=vector,weights=1/0").spec.endswith(
        "rule=vector,alpha=0.3,weights=1.0/0.0"
    )


def test_a_sweep_takes_a_bool(offered: None) -> None:
    plan = SweepPlan.model_validate({"strategies": [{"toggled": {"fast": [True, False]}}]})
    assert plan.specs() == ["target", "toggled:fast=True", "toggled:fast=False"]


def test_rules_are_always_made_with_validated_values(offered: None) -> None:
    """The bug: where all rules are used, their defaults were not, so that this rule failed at its unread text."""
    seen = record(near(400), prompts("one"), Resolved(max_new_tokens=8, temperature=1.0), 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = match(seen, [0.5], 2, 1.0, ["vector"])
    assert [each.rule for each in found] == ["vector"] and "vector" in usable_rules()


def test_broken_plugins_are_not_among_all_usable_ones(installed: dict[str, str]) -> None:
    code = "from cascli.jobs.usable import *; print(*usable_rules()); print(*usable_stops())"
    done = warm.run("-c", code, env=installed)
    known, stops = (line.split() for line in done.stdout.splitlines())
    assert {*known} == {*usable_rules(), "good", "good-too", "late", "wide", "vector"}
    assert {*stops} == {*usable_stops()}


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        (("compare", "hi", "--rules", "all", "--trace", "none"), "rules"),
        (("advise", "--prompts", "builtin", "--limit", "1"), "rules and stops"),
        (("compare", "hi", "--rules", "token-v3", "--trace", "none"), ""),
    ],
)
def test_left_out_plugins_are_reported(installed: dict[str, str], command: tuple[str, ...], kinds: str) -> None:
    """Commands that use all of a kind report what they leave out; a command that names one reports nothing."""
    done = warm.run(*command, "-c", "tiny-random", "--max-new-tokens", "2", "--color", "never", env=installed)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    of_rules = (
        "left out: rule 'raises' of odd:Raises: ValueError: boom",
        "left out: rule 'leaves' of odd_leaves:X: SystemExit: 0",
        "left out: strategy 'speculative-cascade:rule=lengths': rule 'lengths': its parameter 'k' is also one of the",
        "left out: rule 'far-dial' of odd:FarDial: its dial: strategy 'speculative-cascade:rule=far-dial,n=0'",
    )
    of_stops = (
        "left out: stop 'gone' of odd:Nothing:x", "left out: stop 'bad-begin' of odd:BadBegin: TypeError: boom",
        "left out: strategy 'speculative:stop=long-stop': stop 'long-stop': its parameter 'k' is also one of the",
    )  # fmt: skip
    for sentences, kind in ((of_rules, "rules"), (of_stops, "stops")):
        assert all((each in said) == (kind in kinds) for each in sentences), said
    assert not any(name in said for name in ("'good'", "'late'", "'vector'"))


def test_a_rule_that_needs_more_tokens_than_are_tabulated_is_skipped(installed: dict[str, str]) -> None:
    """It is not audited by default; its law is reported as skipped, with the reason, like that of a broken rule."""
    code = (
        "from cascli.audit import default_strategies, law, tables; from cascli import load_pair;"
        "print(*default_strategies(), sep='\\n');"
        "tree = tables.tabulate(load_pair('tiny-random'), [5, 6], 16, 1);"
        "print(*(f'{each.subject}: {each.status}: {each.detail}' for each in law.worst_of([tree])), sep='\\n')"
    )
    done = warm.run("-c", code, env=installed)
    assert "rule=good," in done.stdout and "rule=wide" not in done.stdout
    assert "wide: skipped: of 16 tokens: ValueError: a vocabulary of 100 tokens" in done.stdout, done.stdout
    assert "raises: skipped: rule 'raises' of odd:Raises: ValueError: boom" in done.stdout


@pytest.mark.parametrize("more", [(), ("--batch-size", "2")])
def test_answers_of_other_strategies_are_kept_if_a_rule_fails(
    installed: dict[str, str], tmp_path: Path, more: tuple[str, ...]
) -> None:
    """A rule that fails at its 31st position does not lose the answers of other strategies."""
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "hi"}\n{"prompt": "ho"}\n')
    done = warm.run(
        "compare", "--prompts", str(asked), "-c", "tiny-random", "-s", "target", "-s", "speculative:k=2",
        "-s", "speculative-cascade:rule=late,k=2", "--max-new-tokens", "24", "-o", str(tmp_path / "kept.json"), *more,
        env=installed,
    )  # fmt: skip
    assert done.returncode == 3 and "the rule 'late' of odd: ValueError: boom" in done.stderr, done.stderr
    assert "failed: these are the answers so far" in done.stderr and "Traceback" not in done.stderr
    kept = Comparison.from_json((tmp_path / "kept.json").read_text())
    assert {"target", "speculative:k=2"} <= {row.strategy for row in kept.summary}
    assert "target" in done.stdout and "speculative" in done.stdout


# ---- who is blamed for an error


def test_a_plugin_is_blamed_only_for_its_own_errors(loaded: Pair) -> None:
    own = strategies.parse("speculative:k=2")
    with pytest.raises(KeyError), blamed(own):  # cascli's own errors stay as they are
        raise KeyError("mine")
    elsewhere = type("Writes", (Strategy,), {"__module__": "strange.home", "decode": lambda self, s: []})
    # Raised by cascli's code because of a plug-in's return value: the traceback has no frame of the plug-in.
    said = r"while running the strategy 'writes' of strange\.home: KeyError: 'theirs'"
    with pytest.raises(RunError, match=said), blamed(elsewhere()):
        raise KeyError("theirs")
    with pytest.raises(MemoryError), blamed(Writes()):
        raise MemoryError
    assert label(Speculative(draft=Drafts())) == "the strategy 'speculative' of cascli.strategies.speculative"


def test_only_what_is_not_ours_is_left_out_if_it_fails() -> None:
    with (
        pytest.warns(PairWarning, match="left out: the stop .stops. of .*ZeroDivisionError"),
        left_out_if_it_fails(Stops()),
    ):
        _fail_in_a_plugin()
    with pytest.raises(ZeroDivisionError), left_out_if_it_fails(rules.load("opt")()):
        raise ZeroDivisionError


def _fail_in_a_plugin() -> None:
    raise ZeroDivisionError("boom")


def test_defaults_are_validated() -> None:
    @dataclass(frozen=True)
    class Loose(KeepRule):
        alpha: Any = 9.0
        least: int = "many"  # type: ignore[assignment]

        def keep(self, d: Dists) -> torch.Tensor:
            return d.q1 > self.alpha

    with pytest.raises(UsageError, match="least"):
        validated(Loose, {})


def test_names_are_not_turned_into_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    view = screen("never")
    view.note("of g4:x: KeyError")
    view.out.print("a :x: b")
    shown = capsys.readouterr()
    assert ":x:" in shown.err and ":x:" in shown.out
