"""The scripts in examples/ run on small pairs."""

from __future__ import annotations

from pathlib import Path

from cascli import load_pair
from cascli.models.tokenizer import byte_tokenizer
from tests import warm
from tests.pairs import pair

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *arguments: str) -> str:
    ended = warm.run("-c", (EXAMPLES / f"{name}.py").read_text(), *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"rejected_drafts", "rule_at_a_glance", "own_models"}


def test_rejected_drafts() -> None:
    assert "became" in run("rejected_drafts", "tiny-random", "hello")


def test_rule_at_a_glance() -> None:
    assert len(run("rule_at_a_glance", "tiny-random", "opt", "hello").splitlines()) == 5


def test_own_models(tmp_path: Path) -> None:
    loaded = load_pair(pair(300))
    for role in ("draft", "target"):
        getattr(loaded, role).model.save_pretrained(tmp_path / role)
        byte_tokenizer().save_pretrained(tmp_path / role)
    said = run("own_models", str(tmp_path / "draft"), str(tmp_path / "target"), "hello")
    assert "target calls alone" in said and "the same tokens" in said
