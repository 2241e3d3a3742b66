"""Rules, drafters and strategies from other packages and from notebooks."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from cascli import Pair, compare, drafters, generate, load_pair, plugins, rules, stops, strategies
from cascli.audit import audit
from cascli.cli import complete
from cascli.cli.strategies import _described
from cascli.decoding.speculation import Block
from cascli.drafters.base import Drafter
from cascli.errors import RunError, UsageError
from cascli.rules.base import KeepRule, Rule
from cascli.sampling.distributions import Dists
from cascli.strategies.base import Speculating, Strategy
from cascli.strategies.speculative import Speculative
from cascli.strategies.speculative_cascade import SpeculativeCascade
from cascli.strategies.token_cascade import TokenCascade
from cascli.sweeps.plan import SweepPlan
from tests import warm
from tests.laws.models import engine_law, reference_law
from tests.laws.tables import target
from tests.laws.test_drafters import CONTRACT
from tests.laws.test_engine_enumeration import PLAIN
from tests.pairs import pair
from tests.reference.process import distance

RULE = """
from dataclasses import dataclass
from cascli.rules.base import KeepRule

@dataclass(frozen=True)
class Keep(KeepRule):
    formula = "keep q where q1 is even"
    def keep(self, d):
        return d.q1.amax(dim=-1, keepdim=True) >= self.alpha
"""
SLIPS = """
@dataclass(frozen=True)
class Half(KeepRule):
    def kep(self, d):
        return d.q1 > 0.5

@dataclass(frozen=True)
class Asks(KeepRule):
    least: float = None
    def keep(self, d):
        return d.q1 > self.least
"""
DRAFTER = """
from dataclasses import dataclass
from cascli.drafters.base import Drafter

@dataclass(frozen=True)
class Slipped(Drafter):
    k: int = 3
    def propose(self, s, n, rule):
        raise NotImplementedError
"""
POINTS = """
[cascli.rules]
keep-some = strange:Keep
broken = strange_broken:X
no-rule = strange:dataclass
opt = strange:Keep
half = strange:Half
asks = strange:Asks
"""


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """An environment in which another package provides rules."""
    (tmp_path / "strange.py").write_text(RULE + SLIPS)
    (tmp_path / "strange_broken.py").write_text("raise RuntimeError('boom')")
    info = tmp_path / "strange-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strange\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    return os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def test_a_rule_from_another_package_works(installed: dict[str, str]) -> None:
    listed = warm.run("strategies", env=installed)
    answered = warm.run(
        "generate", "hi", "-c", "tiny-random", "-s", "speculative-cascade:rule=keep-some,alpha=0.2,k=2",
        "--max-new-tokens", "4", "--json", env=installed,
    )  # fmt: skip
    assert '"rule":"keep-some"' in answered.stdout, answered.stderr
    # A rule that cannot be imported does not hide the others, and the package's own rules are not replaced.
    assert "keep-some" in listed.stdout and "token-v3" in listed.stdout, listed.stderr
    assert "even" in listed.stdout.partition("keep-some")[2] and listed.stdout.count("q1 is even") == 1


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("broken", "RuntimeError: boom"),
        ("no-rule", "is not a subclass of Rule"),
        ("nobody", "unknown rule 'nobody'"),
        ("half", "strange: Half lacks keep"),
    ],
)
def test_a_faulty_plugin_is_explained_in_one_sentence(installed: dict[str, str], rule: str, said: str) -> None:
    ended = warm.run("generate", "hi", "-c", "tiny-random", "-s", f"token-cascade:rule={rule}", env=installed)
    assert ended.returncode == 2 and said in ended.stderr and len(ended.stderr.splitlines()) <= 2


def test_broken_rules_are_not_among_all_rules(installed: dict[str, str]) -> None:
    """`verify`, `--rules all` and `advise` use every rule: one faulty plug-in must not cost the others."""
    code = "from cascli.jobs.usable import usable_rules; print(*usable_rules())"
    done = warm.run("-c", code, env=installed)
    found = done.stdout.split()
    assert {"keep-some", "opt", "token-v3"} <= {*found} and not {"broken", "no-rule", "half", "asks"} & {*found}
    listed = warm.run("strategies", env=installed)
    assert listed.returncode == 0 and "keep-some" in listed.stdout and "Half lacks keep" in listed.stderr


@dataclass(frozen=True)
class MinPOfP(Rule):
    def apply(self, d: Dists) -> torch.Tensor:
        return d.p


@dataclass(frozen=True)
class MyOwn(Speculating):
    @property
    def verification_rule(self) -> Rule:
        return MinPOfP()


def test_strategies_defined_in_a_notebook_have_sane_names(text_pair: Pair) -> None:
    assert plugins.name_of(MinPOfP) == "min-p-of-p" and plugins.name_of(MyOwn) == "my-own"
    run = generate(text_pair, "hi", strategy=MyOwn(k=3), max_new_tokens=4)
    assert run.spec == "my-own:k=3"


@dataclass(frozen=True)
class Chow(KeepRule):
    """A rule of its own that has the name of one of cascli's."""

    def keep(self, d: Dists) -> torch.Tensor:
        return d.best("q1") >= -1


@dataclass(frozen=True)
class Target(Strategy):
    """A strategy of its own that has the name of one of cascli's, and calls no target."""

    def decode(self, s: Any) -> Any:
        return strategies.parse("draft").decode(s)


def test_a_class_is_not_called_by_the_name_of_another(text_pair: Pair) -> None:
    """The bug: what a notebook's `Chow` had written was labelled as cascli's, and `Target` became the baseline."""
    assert plugins.name_of(Chow) == f"{__name__}.chow" and plugins.name_of(type(strategies.parse("target"))) == "target"
    run = generate(text_pair, "hi", strategy=SpeculativeCascade(rule=Chow(), k=2), max_new_tokens=4, temperature=1.0)
    assert run.spec == f"speculative-cascade:rule={__name__}.chow,alpha=0.3,k=2"
    with pytest.raises(UsageError, match="unknown rule"):
        strategies.parse(run.spec)
    found = compare(text_pair, "hi", [Target(), "speculative:k=2"], max_new_tokens=4, measure=False)
    assert [row.speed_vs_target for row in found.summary] == [None, None]


@pytest.mark.parametrize("value", ["shop:Chow", "shop : shelf.Chow", f"{__name__}: Chow"])
def test_a_class_has_the_name_of_the_entry_point_that_loads_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: a class that a package only passes on lost its name, and cascli's own `chow` ran in its place."""
    shop: Any = ModuleType("shop")
    shop.Chow, shop.shelf = Chow, SimpleNamespace(Chow=Chow)
    monkeypatch.setitem(sys.modules, "shop", shop)
    points = {name: [EntryPoint(name, value, "cascli.rules")] for name in ("chow", "my-chow")}
    monkeypatch.setattr(plugins, "_offered", lambda group: points if group == "cascli.rules" else {})
    plan = SweepPlan.model_validate({"strategies": [{"token-cascade": {"rule": "my-chow", "alpha": [0.3]}}]})
    spec = plan.specs()[1]
    assert spec == "token-cascade:rule=my-chow,alpha=0.3"
    assert strategies.parse(spec) == TokenCascade(rule=Chow()) and TokenCascade(rule=Chow()).spec == spec


def test_what_a_module_prints_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bug: it went to stdout, among the JSON that was asked for and the words of a completion."""
    (tmp_path / "loud.py").write_text("print('hello')\n" + RULE, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    points = {"loud": [EntryPoint("loud", "loud:Keep", "cascli.rules")]}
    monkeypatch.setattr(plugins, "_offered", lambda group: points if group == "cascli.rules" else {})
    assert complete.strategies("token-cascade:rule=loud,al") == ["token-cascade:rule=loud,alpha="]
    assert capsys.readouterr() == ("", "hello\n")
    del sys.modules["loud"]


@pytest.mark.parametrize(
    ("package", "code", "said"),
    [
        ("rules", RULE.replace("@dataclass(frozen=True)", ""), "must be decorated with @dataclass"),
        ("drafters", DRAFTER, "its parameter 'k' is also one of the strategy's"),
        ("rules", RULE + RULE.replace("Keep(", "Hold("), "must define exactly one Rule (found 2)"),
        ("rules", "", "must define exactly one Rule (found 0)"),
    ],
)
def test_mistakes_in_a_local_plugin_file_are_reported(
    package: str, code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slipped.py").write_text(code, encoding="utf-8")
    room = {"rules": rules, "drafters": drafters}[package]
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"cascli.{package}.slipped", raising=False)
    given = "speculative-cascade:rule=slipped" if package == "rules" else "speculative:draft=slipped"
    with pytest.raises(UsageError, match=re.escape(said)):
        strategies.parse(given)


def test_a_local_plugin_file_that_cannot_be_imported_is_an_error_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the first that is listed, and no other plug-in is loaded before."""
    (tmp_path / "slipped.py").write_text("import nowhere_at_all", encoding="utf-8")
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cascli.rules.slipped", raising=False)
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        list(_described("rules", rules, {"slipped"}, print))


def test_the_page_on_adding_a_drafter_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_pair: Pair) -> None:
    """The page's drafter is found, follows the contract, is audited, and passes the page's own test."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-drafter.md").read_text(encoding="utf-8")
    code, test = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (tmp_path / "bigram.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(drafters, "__path__", [*drafters.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cascli.drafters.bigram", raising=False)
    assert "bigram" in drafters.names()
    for contract in CONTRACT:
        contract("bigram")
    chosen = [
        strategies.parse(f"{name}draft=bigram,k=2") for name in ("speculative:", "speculative-cascade:rule=token-v3,")
    ]
    checks = [check for check in audit(text_pair, chosen, quick=True).checks if check.kind in ("round", "joint law")]
    # The q of a custom drafter is not tabulated; the joint law of a lossless strategy is known without it.
    assert [check.status for check in checks] == ["pass", "pass", "pass", "skipped"]
    scope: dict[str, Any] = {}
    exec(test, scope)
    scope["test_a_first_token_is_not_drafted_after"]()


def test_the_page_on_adding_a_stop_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_pair: Pair) -> None:
    """The page's stop is found, preserves the law, and passes the page's own test."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-stop.md").read_text(encoding="utf-8")
    code, test = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (tmp_path / "patience.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(stops, "__path__", [*stops.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "cascli.stops.patience", raising=False)
    assert "patience" in stops.names()
    law = engine_law("speculative:stop=patience,k=3", 3, 3, 2, **PLAIN)
    assert distance(law, reference_law(target("exact"), 3, 3, 2, **PLAIN)) < 1e-12
    run = generate(text_pair, "hi", strategy="speculative:stop=patience,k=auto", max_new_tokens=6)
    assert run.spec == "speculative:stop=patience,sure=0.5,k=auto"
    scope: dict[str, Any] = {}
    exec(test, scope)
    scope["test_the_third_unsure_token_is_not_drawn"]()


def test_the_page_on_adding_a_strategy_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text_pair: Pair) -> None:
    """The page's two files are found in the package's path and audited, and pass the page's own tests."""
    page = (Path(__file__).parents[1] / "docs" / "add-a-strategy.md").read_text(encoding="utf-8")
    half, turns, test_half, test_turns = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    for name, code in (("half_exact", half), ("every_other", turns)):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        monkeypatch.delitem(sys.modules, f"cascli.strategies.{name}", raising=False)
    chosen = [strategies.parse(text) for text in ("half-exact:k=2", "every-other")]
    checks = audit(text_pair, chosen, quick=True).checks
    about = [(check.kind, check.subject, check.status) for check in checks if check.kind in ("round", "joint law")]
    assert about == [
        ("round", "half-exact:k=2", "pass"),
        ("joint law", "half-exact:k=2", "pass"),
        ("joint law", "every-other", "skipped"),
    ]
    scope: dict[str, Any] = {}
    exec(test_half, scope)
    scope["test_texts_follow_the_mean"](PLAIN)
    exec(test_turns, scope)
    scope["test_the_models_take_turns"]()


# ---- what faulty plug-ins return


@dataclass(frozen=True)
class Strange(Rule):
    """A rule whose author has made a mistake."""

    what: str = ""

    def apply(self, d: Dists) -> torch.Tensor:
        mistakes = {
            "nan": lambda: d.p * float("nan"),
            "logs": lambda: d.p.log().clamp_min(-20),
            "less": lambda: torch.minimum(d.p, d.q),
            "beyond": lambda: 2 * d.p - d.q,
            "narrow": lambda: d.p.amax(dim=-1, keepdim=True),
        }
        return mistakes[self.what]()


@dataclass(frozen=True)
class Writes(Rule):
    """Overwrites the target's probabilities and returns them."""

    def apply(self, d: Dists) -> torch.Tensor:
        return d.p.mul_(0.5).add_(d.q, alpha=0.5)


@dataclass(frozen=True)
class StrangeDrafts(Drafter):
    """Drafts token 3 with certainty, with a mistake in q or in the tokens."""

    what: str = ""

    def propose(self, s: Any, n: int, rule: Rule) -> Block:
        ids = torch.full((n,), 3)
        q = torch.zeros(n, s.vocab).index_fill_(1, torch.tensor([3]), 1.0)
        mistakes = {
            "nan": lambda: (ids, q * float("nan")),
            "logs": lambda: (ids, q.log().clamp_min(-20)),
            "twice": lambda: (ids, 2 * q),
            "elsewhere": lambda: (ids + 1, q),
            "outside": lambda: (ids + s.vocab, q),
            "more": lambda: (torch.full((n + 2,), 3), q[:1].expand(n + 2, -1)),
            "narrow": lambda: (ids, q[:, :5]),
        }
        tokens, q = mistakes[self.what]()
        return Block(tokens, q, q)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nan", "not finite"), ("logs", "negative"), ("less", "not a distribution"), ("beyond", "negative"),
        ("narrow", r"pi must have shape \[3, 20\] \(got \[3, 1\]\)"),
    ],
)  # fmt: skip
def test_a_third_party_rule_that_returns_no_distribution_is_reported(what: str, said: str) -> None:
    """The bug: its pi became the law of the texts, and was reported as lossless where it was nowhere above p."""
    loaded = load_pair(pair(20, initializer_range=0.5))
    for strategy in (SpeculativeCascade(rule=Strange(what=what), k=3), TokenCascade(rule=Strange(what=what))):
        with pytest.raises(RunError, match=r"the rule 'strange' of tests\.test_plugins: pi") as told:
            generate(loaded, prompt_ids=[1, 2], strategy=strategy, max_new_tokens=9, temperature=1.0)
        assert isinstance(strategy, TokenCascade) or re.search(said, str(told.value))


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("nan", "not finite"), ("logs", "negative"), ("twice", "not a distribution"), ("narrow", "q must have shape"),
        ("elsewhere", "probability 0 in its own q"), ("outside", "outside the vocabulary"), ("more", "tokens must be"),
    ],
)  # fmt: skip
def test_a_third_party_drafter_that_reports_a_wrong_q_is_detected(what: str, said: str) -> None:
    strategy = Speculative(draft=StrangeDrafts(what=what), k=3)
    with pytest.raises(RunError, match=f"the drafter 'strange-drafts' of tests.test_plugins: .*{said}"):
        generate(load_pair(pair(20)), prompt_ids=[1, 2], strategy=strategy, max_new_tokens=9, temperature=1.0)


@dataclass(frozen=True)
class WritesAsItDecides(KeepRule):
    """Keeps q everywhere, but first overwrites p with q."""

    def keep(self, d: Dists) -> torch.Tensor:
        d.p.copy_(d.q)
        return torch.ones(d.p.shape[0], 1, dtype=torch.bool)


@pytest.mark.parametrize("rule", [Writes(), WritesAsItDecides()], ids=["pi", "decision"])
def test_a_third_party_rule_only_writes_into_copies(rule: Rule) -> None:
    """The rule's pi is half or all of q, and its distance from p is reported although the rule writes into p."""
    strategy = SpeculativeCascade(rule=rule, k=3)
    loaded = load_pair(pair(20, initializer_range=0.5))
    run = generate(loaded, prompt_ids=[1, 2], strategy=strategy, max_new_tokens=9, temperature=1.0)
    assert run.metrics.lossless is False and (run.metrics.mean_tv_to_target or 0.0) > 0.01
