"""Progress reported while a pair is loaded."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from cascli import load_pair
from cascli.cli.progress import Progress
from cascli.models.stages import Stage, Stages, Work
from cascli.render.console import Screen
from tests.pairs import EVERY_ARCHITECTURE, pair, stored_alone


def shares(told: list[Stage]) -> list[float]:
    return [stage.done / stage.total for stage in told if stage.total]


def texts(told: list[Stage]) -> list[str]:
    return list(dict.fromkeys(stage.text for stage in told))


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_progress_rises_to_one(name: str) -> None:
    told: list[Stage] = []
    loaded = load_pair(pair(300, **EVERY_ARCHITECTURE[name]), on_stage=told.append)
    found = shares(told)
    assert found == sorted(found) and found[0] < 0.1 and found[-1] == 1.0
    layers = loaded.target.model.config.get_text_config().num_hidden_layers
    for role in ("draft", "target"):
        for layer in range(1, layers + 1):
            assert f"reading the {role}: layer {layer} of {layers}" in texts(told)
    assert texts(told)[0] == "reading the tokenizer"


def test_a_single_model_accounts_for_all_progress() -> None:
    told: list[Stage] = []
    load_pair({"target": pair(300)["target"]}, on_stage=told.append)
    assert shares(told)[-1] == 1.0 and not any("draft" in text for text in texts(told))


def test_packing_is_reported_the_first_time_and_reading_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    stored = stored_alone(tmp_path / "model")
    told: list[list[Stage]] = [[], []]
    for each in told:
        load_pair(stored, dtype="float32", on_stage=each.append)
    first, again = (texts(each) for each in told)
    assert "packing the target: layer 1 of 2" in first and "saving the packed weights for the next start" in first
    assert "reading the target: layer 1 of 2" in again and not any("packing" in text for text in again)


class Clock:
    """A clock that advances only when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_left_is_given_for_the_last_model_only_and_is_accurate() -> None:
    told: list[Stage] = []
    clock = Clock()
    stages = Stages(told.append, clock)
    stages.plan([Work("draft", "reading", 10, 1, 10), Work("target", "packing", 100, 4, 10)])
    for weights, seconds in ((1, 3.0), (10, 0.5)):  # the speed of one model does not predict another's
        stages.begin()
        for layer in range(10):
            clock.now += seconds
            stages.reached(f"model.layers.{layer}.mlp", weights)
        stages.end()
    assert all(stage.seconds_left is None for stage in told if "draft" in stage.text)
    known = [stage for stage in told if stage.seconds_left is not None]
    ends = [stage.seconds_left for stage in known if stage.text.startswith("packing the target: layer")]
    assert ends == pytest.approx([0.5 * left for left in range(7, -1, -1)])  # no estimate in the first second
    assert told[-1].done == told[-1].total == 410


def test_progress_never_decreases_if_counts_are_inexact() -> None:
    told: list[Stage] = []
    stages = Stages(told.append)
    stages.plan([Work("draft", "reading", 10, 1, 1), Work("target", "reading", 10, 1, 1)])
    for weights in (50, 3):
        stages.begin()
        stages.reached("model.layers.0.a", weights)
        stages.reached("7.a", 0)  # a one-layer model has no layer 7
        stages.end()
    assert shares(told) == sorted(shares(told)) and shares(told)[-1] == 1.0


def shown(stage: Stage, *, terminal: bool, quiet: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, color_system=None, legacy_windows=False)
    with Progress(Screen(Console(file=io.StringIO()), console, quiet=quiet), "loading") as progress:
        progress.stage(stage)
        progress._bars.refresh()
    return file.getvalue()


def test_one_line_within_80_columns() -> None:
    text = shown(Stage("packing the target: layer 12 of 28", 430, 1000, 65.4), terminal=True)
    line = next(each for each in text.split("\r") if "left" in each)
    assert "packing the target: layer 12 of 28" in line and " 43% 01:05 left" in line


def test_no_share_and_no_time_left_are_shown_where_unknown() -> None:
    text = shown(Stage("reading the tokenizer"), terminal=True)
    assert "reading the tokenizer" in text and "%" not in text and "left" not in text and "bytes" not in text


def test_silent_in_pipes_and_on_request() -> None:
    stage = Stage("reading the target", 1, 2)
    assert shown(stage, terminal=False).strip() == ""
    assert shown(stage, terminal=True, quiet=True).strip() == ""
