"""What each rule keeps, on distributions small enough to check by eye."""

from __future__ import annotations

import pytest
import torch

from cascli import rules
from cascli.sampling.distributions import Dists
from cascli.strategies.base import validated

Q = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
P = torch.tensor([[0.2, 0.7, 0.1]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "alpha", "kept"),
    [
        ("chow", 0.4, [True]),
        ("chow", 0.39, [False]),
        ("diff", 0.11, [True]),
        ("diff", 0.09, [False]),
        ("opt", 0.26, [True]),  # TV(p, q) = 0.4, and the target's lead is 0.1
        ("opt", 0.24, [False]),
        ("token-v1", 0.2, [True, False, False]),
        ("token-v1", 0.45, [True, True, False]),
        ("token-v2", 0.2, [False, True, False]),
        ("token-v2", 0.55, [True, True, False]),
        ("token-v3", 0.5, [False, True, False]),
        ("token-v3", 0.75, [True, True, False]),
    ],
)
def test_rules_keep_the_expected_tokens(name: str, alpha: float, kept: list[bool]) -> None:
    rule, d = rules.load(name)(alpha=alpha), Dists(Q, P, Q, P)
    keep = torch.tensor([kept])
    assert torch.equal(~rule.deferred(d), keep)
    wanted = Q.where(keep, P) if len(kept) == 1 else Q * keep + P * (Q * ~keep).sum()
    assert torch.allclose(rule.apply(d), wanted, atol=1e-15)


def test_thresholds_test_the_unwarped_distributions() -> None:
    one_hot = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    assert rules.load("chow")(alpha=0.3).deferred(Dists(one_hot, P, Q, P)).item()


def test_opt_measures_disagreement_on_the_warped_distributions() -> None:
    same = torch.tensor([[1.0, 0, 0]], dtype=torch.float64)
    assert rules.load("opt")(alpha=1.0).deferred(Dists(same, same, Q, P)).item()
    assert not rules.load("opt")(alpha=1.0).deferred(Dists(Q, P, Q, P)).item()


def test_the_page_on_adding_a_rule_works(tmp_path, monkeypatch) -> None:
    """The rule in docs/add-a-rule.md, added to the package's path, is found, parsed and tested."""
    import re
    from pathlib import Path

    from cascli.strategies import parse

    page = (Path(__file__).parents[2] / "docs" / "add-a-rule.md").read_text(encoding="utf-8")
    rule, _, test = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    (tmp_path / "chow_log.py").write_text(rule, encoding="utf-8")
    monkeypatch.setattr(rules, "__path__", [*rules.__path__, str(tmp_path)])
    assert "chow-log" in rules.names()
    assert parse("speculative-cascade:rule=chow-log,alpha=0.5").params == {"rule": "chow-log", "alpha": 0.5, "k": 4}
    scope: dict = {}
    exec(test, scope)
    scope["test_sure_draft_is_kept_and_unsure_draft_is_not"]()


def test_the_page_on_adding_a_rule_shows_a_threshold_that_works() -> None:
    import re
    from pathlib import Path

    from cascli.rules.base import Threshold, ThresholdRule

    page = (Path(__file__).parents[2] / "docs" / "add-a-rule.md").read_text(encoding="utf-8")
    method = re.findall(r"```python\n(.*?)```", page, flags=re.S)[1]
    names = {"ThresholdRule": ThresholdRule, "Threshold": Threshold}
    exec(f"class Half(ThresholdRule):\n{method}", names)
    assert names["Half"](alpha=0.1).keep(Dists(Q, P, Q, P)).tolist() == [[True, False, False]]


@pytest.mark.parametrize("name", rules.names())
def test_defaults_are_in_their_ranges(name: str) -> None:
    kind = rules.load(name)
    assert validated(kind, vars(kind())) == kind()
