from __future__ import annotations

import subprocess
import sys

import pytest

from cascli import rules, strategies
from cascli.errors import UsageError
from cascli.strategies.cascade import Confidence, score

NAMES = ["cascade", "draft", "speculative", "speculative-cascade", "target", "token-cascade"]


def test_strategies_and_rules_are_found_by_file_name() -> None:
    assert set(NAMES) <= set(strategies.names())
    assert {"chow", "diff", "opt", "token-v1", "token-v2", "token-v3"} <= set(rules.names())
    assert [strategies.load(name).__name__ for name in NAMES][:2] == ["Cascade", "Draft"]


@pytest.mark.parametrize(
    ("text", "name", "params"),
    [
        ("target", "target", {}),
        ("speculative:k=3", "speculative", {"k": 3}),
        ("speculative:verify=token,k=3", "speculative", {"k": 3}),
        ("speculative:verify=block,k=3", "speculative", {"k": 3, "verify": "block"}),
        (
            "speculative-cascade:verify=block,rule=opt,alpha=0.3",
            "speculative-cascade",
            {"rule": "opt", "alpha": 0.3, "k": 4, "verify": "block"},
        ),
        (
            " speculative-cascade: rule=opt , alpha=0.3,k=2 ",
            "speculative-cascade",
            {"rule": "opt", "alpha": 0.3, "k": 2},
        ),
        ("speculative-cascade", "speculative-cascade", {"rule": "token-v3", "alpha": 0.3, "k": 4}),
        ("token-cascade", "token-cascade", {"rule": "chow", "alpha": 0.3}),
        ("cascade:threshold=-1e-1", "cascade", {"score": "mean-logprob", "threshold": -0.1}),
        (
            "cascade:score=quantile-logprob,level=0.1",
            "cascade",
            {"score": "quantile-logprob", "threshold": -0.5, "level": 0.1},
        ),
    ],
)
def test_parse(text: str, name: str, params: dict) -> None:
    strategy = strategies.parse(text)
    assert (strategy.name, strategy.params) == (name, params)
    values = ",".join(f"{key}={value}" for key, value in params.items())
    assert strategies.parse(f"{name}:{values}") == strategy


def test_k_in_the_string_takes_precedence_over_the_flag() -> None:
    assert strategies.parse("speculative", k=7).params == {"k": 7}
    assert strategies.parse("speculative:k=2", k=7).params == {"k": 2}
    assert strategies.parse("target", k=7).params == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("targt", "did you mean 'target'"),
        ("speculative:j=3", "unknown parameter 'j'"),
        ("speculative:k=0", "greater than or equal to 1"),
        ("speculative:k=1.5", "integer"),
        ("speculative:verify=blocks", "'token' or 'block'"),
        ("target:verify=block", "takes no parameters"),
        ("token-cascade:verify=block", "unknown parameter 'verify'"),
        ("speculative:k", "key=value"),
        ("speculative:k=1,k=2", "twice"),
        ("speculative-cascade:rule=op", "did you mean 'opt'"),
        ("speculative-cascade:rule=opt,alpha=nan", "finite"),
        ("token-cascade:alpha=2", "less than or equal to 1"),
        ("cascade:score=confidence", "mean-logprob"),
        ("target:k=1", "takes no parameters"),
        ("", "unknown strategy"),
    ],
)
def test_bad_strategies_are_explained(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        strategies.parse(text)


def test_rules_that_read_the_target_make_a_token_cascade_an_oracle() -> None:
    assert not strategies.parse("token-cascade:rule=chow").oracle
    assert strategies.parse("token-cascade:rule=opt").oracle
    assert not strategies.parse("speculative-cascade:rule=opt").oracle


def test_parsing_imports_no_torch() -> None:
    code = "import sys, cascli.cli.app; from cascli.strategies import parse; parse('speculative-cascade:rule=opt'); "
    code += "sys.exit(bool({'torch', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_confidence_scores() -> None:
    confidence = Confidence(logprobs=[-1.0, -3.0, -2.0], margins=[0.5, 0.1, 0.3])
    assert score("mean-logprob", confidence, 0) == -2
    assert score("sum-logprob", confidence, 0) == -6
    assert score("quantile-logprob", confidence, 0) == -3
    assert score("min-margin", confidence, 0) == 0.1
    assert score("quantile-logprob", Confidence([-3.0, -1.0, -2.0], [0.1]), 0.75) == -1.5
