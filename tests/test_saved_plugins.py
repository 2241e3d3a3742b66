"""Answers of other packages' plug-ins: what is recorded with them, and what is shown where the package is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cascli import Pair, Run, generate, load_pair, plugins, sweep
from cascli.cli.app import app
from cascli.errors import RunError, UsageError
from cascli.provenance import of_plugins
from cascli.render.sweep_curves import curves, looks_of
from cascli.render.sweep_report import report
from cascli.render.sweep_words import differences
from cascli.stops.never import Never
from cascli.strategies import parse, shown
from cascli.sweeps.plan import Cell, SweepPlan
from cascli.sweeps.ray_executor import _check_alike
from cascli.sweeps.records import Records
from cascli.sweeps.table import SweepTable
from cascli.sweeps.tasks import Example
from cascli.sweeps.worker import answers
from tests.sweeps import header_of, plan_of

MODULE = """
from dataclasses import dataclass
from cascli.rules.base import KeepRule
from cascli.strategies.base import Strategy
from cascli.trace import Emitted, Round

@dataclass(frozen=True)
class Often(KeepRule):
    alpha: float = 0.1
    def keep(self, d):
        return d.best("q1") >= self.alpha

@dataclass(frozen=True)
class InTurns(Strategy):
    k: int = 1
    def decode(self, s):
        while not s.finished:
            drafts = s.length // self.k % 2 == 0
            token = s.draw(s.warp((s.draft if drafts else s.target).read(s.length)))
            s.append(token)
            yield Round(emitted=[Emitted(id=int(token), text="x", event="draft" if drafts else "target")])
"""
POINTS = "[cascli.rules]\noften = elsewhere:Often\n[cascli.strategies]\nin-turns = elsewhere:InTurns\n"


class Elsewhere:
    """A package in a folder on Python's path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._info = folder, folder / "elsewhere-1.0.dist-info"
        self._info.mkdir(parents=True)

    def install(self, version: str = "1.0", module: str = MODULE) -> None:
        """Install it, or another version of it."""
        (self._info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: elsewhere\nVersion: {version}\n")
        (self._info / "entry_points.txt").write_text(POINTS)
        (self.folder / "elsewhere.py").write_text(module)
        self.forget()

    def remove(self) -> None:
        """Leave nothing that Python finds."""
        (self._info / "entry_points.txt").unlink()
        (self.folder / "elsewhere.py").unlink()
        self.forget()

    def forget(self) -> None:
        """Let the next use read the files, as a new process would."""
        plugins._offered.cache_clear()
        sys.modules.pop("elsewhere", None)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Elsewhere]:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file's second version would be as old as its first
    monkeypatch.syspath_prepend(tmp_path / "site")
    package = Elsewhere(tmp_path / "site")
    package.install()
    yield package
    package.forget()


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("tiny-random")


def show(*arguments: str) -> str:
    found = CliRunner().invoke(app, ["show", *arguments], env={"COLUMNS": "160"})
    assert found.exit_code == 0, found.output
    return found.stdout


def test_a_sweep_is_shown_without_its_plugins(elsewhere: Elsewhere, pair: Pair, tmp_path: Path) -> None:
    """Its table, and whatever is made of it, is the same as with them."""
    out, files = str(tmp_path / "out"), [tmp_path / f"results.{each}" for each in ("csv", "speculation_profile.json")]
    entries = ["speculative-cascade:k=2,rule=often", {"in-turns": {"k": [1, 2]}}]
    sweep({"strategies": entries, "temperatures": [1.0], "max_new_tokens": 2}, pair, limit=2, output=out)
    seen: list[list[object]] = []
    for _ in range(2):
        for file in files:
            show(out, "-o", str(file))
        records = Records(tmp_path / "out")
        table = SweepTable.of(records.header(), records)
        page = report(records.header(), table.rows, None, list(records.read()))
        looks = looks_of(curves(table.rows))
        seen.append([show(out), show(str(files[0])), page, looks, *(file.read_text() for file in files)])
        if len(seen) == 1:
            elsewhere.remove()
    assert seen[0] == seen[1] and "in-turns" in str(seen[1][0])
    assert header_of(plan_of(strategies=entries), num_prompts=2).planned is None


def test_what_is_shown_is_the_same_without_the_plugins(elsewhere: Elsewhere) -> None:
    specs = ["speculative-cascade:rule=often,alpha=0.1,k=2", "in-turns:k=3", "speculative-cascade:verify=block"]
    found = [shown(parse(spec).spec) for spec in specs]
    elsewhere.remove()
    assert found == [shown(spec) for spec in specs]
    assert shown("gone:rule=x,cut=True,size=007,share=0.50") == (
        "gone", {"rule": "x", "cut": True, "size": "007", "share": "0.50"}, "x", {}, True,
    )  # fmt: skip


OFTEN = "speculative-cascade:rule=often,alpha=0.2,k=2"
ENTRY = "plug-in rule often"


def test_a_sweep_is_not_continued_with_another_version_of_a_plugin(
    elsewhere: Elsewhere, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row would average answers of two rules. Only plug-ins in use count, and only answers that did not fail."""
    out = tmp_path / "out"

    def answer(limit: int, *strategies: str, **more: Any) -> dict[str, str]:
        plan = {"strategies": list(strategies), "temperatures": [1.0], "max_new_tokens": 2}
        sweep(plan, pair, limit=limit, output=out, **more)
        return Records(out).header().environment

    def fail(pair: Pair, plan: SweepPlan, cell: Cell, problem: Example) -> list[Run]:
        if cell.strategy == OFTEN:
            raise RunError("planted")
        return answers(pair, plan, cell, problem)

    with monkeypatch.context() as patch:
        patch.setattr("cascli.sweeps.worker.answers", fail)
        answer(1, OFTEN)
    elsewhere.install("1.1", MODULE + "# mended\n")
    found = answer(1, OFTEN, resume=True)
    assert found[ENTRY].startswith("elsewhere 1.1 (source ") and sum(each.startswith("plug-in") for each in found) == 1
    assert answer(2, OFTEN, resume=True)[ENTRY] == found[ENTRY]
    elsewhere.install("1.1", MODULE)
    with pytest.raises(
        UsageError, match=r"plug-in rule often of elsewhere 1\.1 \(source \w{12}\), and this is elsewhere"
    ):
        answer(3, OFTEN, resume=True)
    assert ENTRY not in answer(3, "target", resume=True)
    assert differences(Records(out).header()) is None and ENTRY in Records(out).header().shared_environment
    elsewhere.install("2.0", MODULE)
    assert answer(3, OFTEN, resume=True, anyway=True)[ENTRY].startswith("elsewhere 2.0")
    assert "answers and speeds cannot be compared" in str(differences(Records(out).header()))
    elsewhere.remove()
    assert "answers and speeds cannot be compared" in str(differences(Records(out).header()))


def test_folders_that_recorded_no_plugins_are_resumed(elsewhere: Elsewhere, pair: Pair, tmp_path: Path) -> None:
    """What they were made with is unknown."""
    plan = {"strategies": [OFTEN], "temperatures": [1.0], "max_new_tokens": 2}
    records = Records(tmp_path)
    sweep(plan, pair, limit=1, output=tmp_path)
    header = records.header()
    [call] = header.calls
    old = call.model_copy(update={"environment": {k: v for k, v in call.environment.items() if k != ENTRY}})
    records.write_header(header.model_copy(update={"calls": [old], "environment": old.environment}))
    elsewhere.install("2.0")
    sweep(plan, pair, limit=2, output=tmp_path, resume=True)
    assert [ENTRY in each.environment for each in records.header().calls] == [False, True]


def test_runs_name_the_plugins_they_used(elsewhere: Elsewhere, pair: Pair) -> None:
    """By the package of the entry point, or by the module of a class without one; cascli's own are not named."""
    found = generate(pair, prompt_ids=[1], strategy="in-turns:k=1", max_new_tokens=1).environment
    assert found["plug-in strategy in-turns"].startswith("elsewhere 1.0 (source ")
    used = of_plugins(
        parse(OFTEN), InANotebook(), type("Gone", (InANotebook,), {"__module__": "gone"}), parse("speculative")
    )
    assert list(used) == [ENTRY, "plug-in stop in-a-notebook", "plug-in stop gone"]
    assert used["plug-in stop in-a-notebook"].startswith("tests.test_saved_plugins (source ")


@dataclass(frozen=True)
class InANotebook(Never):
    """A stop without an entry point."""


def test_workers_with_other_plugins_are_not_alike() -> None:
    with pytest.raises(RunError, match=f"{ENTRY} is a 1 on one and a 2 on another"):
        _check_alike({ENTRY: "a 1"}, {ENTRY: "a 2"})
