"""The rules and stops that work: those of other packages are tried, and left out with the reason if they fail."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

import torch

from cascli import plugins, rules, stops, strategies
from cascli.blame import blamed, label
from cascli.decoding.plugin_checks import beginning, decided
from cascli.errors import CascliError, PairWarning, RunError, located
from cascli.plugins import is_own
from cascli.rules.base import Dial, Rule
from cascli.sampling.distributions import Dists
from cascli.sampling.parameters import MOST_DRAFTED
from cascli.stops.base import Stop
from cascli.strategies.base import validated
from cascli.trace import StepCosts


@contextmanager
def left_out_if_it_fails(plugin: object) -> Iterator[None]:
    """Go on without a third-party plug-in that fails here, with a warning that names it; own ones raise."""
    try:
        with blamed(plugin):
            yield
    except CascliError as error:
        if is_own(plugin):
            raise
        warnings.warn(f"left out: {error}", PairWarning, stacklevel=4)


def usable_rules() -> list[str]:
    """Names of all rules except broken third-party ones: the meaning of "all rules"."""
    return sorted({*rules.names()} - {*broken_rules()})


def usable_stops() -> list[str]:
    """Names of all stops except broken third-party ones."""
    return sorted({*stops.names()} - {*broken_stops()})


def broken_rules() -> dict[str, str]:
    """The rules that `usable_rules` leaves out, each with a sentence that says what is wrong."""
    return plugins.broken(rules, "rule", Rule, _try_rule)


def broken_stops() -> dict[str, str]:
    """The stops that `usable_stops` leaves out, each with a sentence that says what is wrong."""
    return plugins.broken(stops, "stop", Stop, _try_stop)


def works_over(kind: type[Rule], vocab: int) -> bool:
    """Whether a third-party rule works with a vocabulary this small; cascli's own rules always do."""
    if is_own(kind):
        return True
    try:
        decide_once(validated(kind, {}), vocab)
    except (Exception, SystemExit):  # third-party code may raise anything
        return False
    return True


def decide_once(rule: Rule, vocab: int = 4096) -> None:
    """Call a rule once, for two positions; the default vocabulary is as large as any rule may require."""
    ramp = torch.linspace(0, 4, vocab).reshape(1, -1)
    p, q = (torch.cat([one, 2 * one]).softmax(dim=-1) for one in (ramp, ramp.flip(1)))
    decided(rule, Dists(q, p, q.clone(), p.clone()))


def _try_rule(name: str, kind: type[Rule]) -> None:
    """Call a rule with its defaults, and build the strategies that use it, with both ends of its dial."""
    decide_once(validated(kind, {}))
    for strategy in ("token-cascade", "speculative-cascade"):
        strategies.parse(f"{strategy}:rule={name}")
    if (dial := kind.dial) is None:
        return
    if not (isinstance(dial, Dial) and dial.parameter in {each.name for each in fields(kind)}):
        raise RunError(f"{label(kind)}: its dial names a parameter that it does not have.")
    with located("its dial"):
        for end in (dial.at(0), dial.at(1)):
            strategies.parse(f"speculative-cascade:rule={name},{dial.parameter}={end}")


def _try_stop(name: str, kind: type[Stop]) -> None:
    """Run a stop with its defaults through one round, and build the strategy that uses it."""
    stopping = beginning(validated(kind, {}), StepCosts(c=0.2, v=[1.0] * (MOST_DRAFTED + 1), measured=False))
    stopping.most(2)
    if stopping.reads == "chance":
        stopping.before_step((0.5,))
    elif stopping.reads is not None:
        stopping.before_draw((), 0.5)
    stopping.learn((0.5, 0.5), 1, rejected=True)
    strategies.parse(f"speculative:stop={name}")
