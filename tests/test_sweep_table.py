"""A sweep's table on the terminal, and its notes on its own numbers."""

from __future__ import annotations

import re

import pytest

from cascli.analysis.matching import Matched
from cascli.analysis.rule_estimate import RuleEstimate
from cascli.render.sweep import COST, category_tables, estimates_table, sweep_tables
from cascli.render.sweep_report import report
from cascli.render.sweep_report_tables import strategies_table
from cascli.render.sweep_words import caution, differences, findings, is_beyond_chance, pair_of, summary, title_of
from cascli.render.table import COST as COMPARE_COST
from cascli.render.table import LAW, PAGE
from cascli.sweeps.plan import Cell
from cascli.sweeps.records import Call, Header, Record
from cascli.sweeps.table import SweepRow, _answered, by_category, front, rows, tidy_rows
from tests.sweeps import header_of, plan_of, records_of
from tests.test_screen import console

PLAN = plan_of()
ROWS = rows(records_of(PLAN), PLAN)


def table(found: list[SweepRow], width: int, header: Header | None = None) -> list[str]:
    view = console(width, color=False)
    for part in sweep_tables(found, "f1", view, header=header):
        view.print(part)
    return [line.rstrip() for line in view.file.getvalue().splitlines()]


def test_headings_are_the_same_as_in_compare() -> None:
    theirs = {column.heading for column in (*PAGE, *LAW, *COMPARE_COST)}
    assert {column.heading for column in COST} <= theirs


@pytest.mark.parametrize("width", [80, 120, 200])
def test_temperatures_are_separated(width: int) -> None:
    """One line per strategy in a table, a heading for each temperature, and an empty line between two tables."""
    lines = table(ROWS, width)
    first, second = lines.index("temperature 0 (greedy)"), lines.index("temperature 1")
    assert lines[second - 1] == ""
    tables = 1 if width == 200 else 2
    end = next(place for place, line in enumerate(lines) if line.startswith("At temperature"))
    for part in (lines[first:second], lines[second:end]):
        headings = [place for place, line in enumerate(part) if line.startswith("strategy")]
        assert len(headings) == tables
        for heading in headings[1:]:  # a heading may have two lines
            assert "" in part[heading - 2 : heading]
        assert sum(line.startswith("spec-cascade opt") for line in part) == 6 * tables
    assert ("results.csv has more columns" in " ".join(lines[-2:])) == (width == 80)
    one_table = len(ROWS) // 2 + 4  # the heading, the line under it, and a line before it
    assert end <= 2 * (1 + tables * one_table) + 2


@pytest.mark.parametrize("width", [40, 80, 200])
def test_what_was_found_is_said_below_the_table_as_in_the_report(width: int) -> None:
    text = " ".join(" ".join(table(ROWS, width)).split())
    found = findings(ROWS)
    assert len(found) > 2
    for sentence in found:
        assert sentence in text and sentence.split(",")[0] in report(header_of(PLAN), ROWS, None, [])
    assert found[0] not in " ".join(table(rows(records_of(PLAN, prompts=3), PLAN), width))


@pytest.mark.parametrize("width", [30, 40, 60])
def test_on_a_narrow_terminal_names_wrap_and_numbers_do_not(width: int) -> None:
    """What distinguishes strategies is kept, and omitted columns are in the file."""
    text = "\n".join(table(ROWS, width))
    assert "…" not in text and "tok/s" not in text
    assert all(len(line) <= width for line in text.splitlines())
    for each in ROWS:
        assert f"{each.quality:.3f}" in text and f"{each.target_calls_per_token:.3f}" in text
        alpha = re.search("alpha=0([.][0-9]+)", each.strategy)
        assert alpha is None or f"α={alpha[1]}" in text
    assert "results.csv has more columns" in " ".join(text.split())


def test_few_prompts_get_no_interval() -> None:
    """A range has square brackets, equal values have none, and a note below explains both."""
    few = rows(records_of(PLAN, prompts=3), PLAN)
    assert {row.quality_interval_kind for row in few} == {"range"}
    text = "\n".join(table(few, 200))
    assert re.search(r"\d \[0\.\d\d-0\.\d\d\]", text) and not re.search(r"\d \(\d", text)
    assert "[ ]: lowest to highest prompt" in text and "a score without brackets: the same on every prompt" in text
    assert "Only 3 prompts: no interval can be given, and no difference between strategies" in text
    many = "\n".join(table(ROWS, 200))
    assert (
        re.search(r"\d \(0\.\d\d-0\.\d\d\)", many) and "Only" not in many and "( ): 95% interval over prompts" in many
    )


def test_a_single_prompt_shows_no_intervals() -> None:
    one = rows(records_of(PLAN, prompts=1), PLAN)
    text = "\n".join(table(one, 200))
    assert "Only 1 prompt: no interval" in text and "brackets" not in text
    assert not re.search(r"\d\.\d+ [(\[]", text)


def test_columns_that_no_strategy_fills_are_left_out() -> None:
    alone = [row for row in ROWS if row.strategy in ("target", "draft")]
    text = "\n".join(table(alone, 200))
    assert "mean" in text and "drafts" not in text and "accept" not in text


def test_acceptance_counts_rounds_and_tests() -> None:
    [row] = [row for row in ROWS if row.strategy == "speculative:k=4" and row.temperature == 0]
    assert row.mean_acceptance_length == 3 and row.tested_acceptance_rate == pytest.approx(2 / 3)


def test_one_sentence_describes_what_was_compared() -> None:
    for temperatures, seeds in (([0.0], ""), ([1.0], ", each with 2 seeds"), ([0.0, 1.0], " (one if greedy)")):
        plan = plan_of(temperatures=temperatures, seeds=[0, 1])
        said = summary(header_of(plan), rows(records_of(plan), plan))
        assert seeds in said and ("seeds" in said) == bool(seeds)
    said = summary(header_of(PLAN), ROWS)
    for part in ("2026-03-01", "18 strategies", "pair mine", "8 prompts", "asked.jsonl", "0 and 1", "f1", "x86_64 cpu"):
        assert part in said, part
    assert "/home" not in said and said.count(".") - said.count("asked.jsonl") == 1
    assert title_of(header_of(PLAN)) == "mine: f1 against cost on asked.jsonl"
    assert pair_of(header_of(PLAN, pair="qwen")) == "qwen" and pair_of(header_of(PLAN, pair="unnamed")) == "mine"
    assert title_of(header_of(PLAN, title="Mine")) == "Mine"


def row(strategy: str, difference: float, low: float, high: float, speed: float) -> SweepRow:
    target = next(row for row in ROWS if row.strategy == "target")
    change = {
        "strategy": strategy,
        "quality": 0.5 + difference,
        "quality_vs_target": difference,
        "quality_vs_target_interval": (low, high),
        "quality_vs_target_interval_kind": "95%",
        "speed_vs_target": speed,
    }
    return target.model_copy(update=change)


def test_findings_agree_with_the_table() -> None:
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    exact, worse = row("speculative:k=4", -0.05, -0.1, 0.1, 1.5), row("draft", -0.3, -0.5, -0.1, 3.0)
    fastest, lower, differs = findings([target, exact, worse])
    assert fastest.endswith("peculative k=4, which is lossless, is 1.50x target alone.")
    assert (
        lower
        == f"The quality of every other strategy is lower than the target's ({target.quality:.3f}), beyond chance."
    )
    assert differs.startswith("Draft differs") and "1 of 1 with loss" in differs
    rule = "speculative-cascade:rule=opt,alpha=0.3,k=4"
    [best, same] = findings([target, row("draft", -0.1, -0.3, 0.1, 3.0), row(rule, 0.1, -0.1, 0.3, 2.0)])
    assert best == (
        f"Of the others whose quality is not shown to be lower than the target's ({target.quality:.3f}), draft is the"
        " fastest: 3.00x target alone, quality -0.100 relative to the target's (-0.300 to +0.100)."
    )
    assert "cannot tell them apart" in same
    slow = findings([target, row("speculative:k=4", 0.1, 0.0, 0.2, 0.9), row(rule, 0.1, -0.1, 0.3, 0.8)])
    assert slow[0] == "No lossless strategy is faster than target alone."
    assert "is faster than target alone" in slow[1] and slow[1].startswith("No other strategy whose quality is not")


def scattered(spec: str, speed: float, low: float, high: float) -> SweepRow:
    kinds = {"speed_interval": (low, high), "speed_interval_kind": "95%"}
    return row(spec, 0.0, -0.1, 0.1, speed).model_copy(update=kinds)


def test_findings_state_whether_the_fastest_is_within_chance() -> None:
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    sure = [scattered("speculative:k=4", 1.5, 1.2, 1.9), scattered("draft", 3.0, 2.5, 3.6)]
    assert findings([target, *sure])[0].endswith("is 1.50x (1.20-1.90) target alone.")
    assert "the fastest: 3.00x (2.50-3.60) target alone, quality" in findings([target, *sure])[1]
    perhaps = [scattered("speculative:k=4", 1.06, 0.9, 1.2), scattered("draft", 1.1, 0.8, 1.5)]
    lossless, lossy, _ = findings([target, *perhaps])
    assert lossless.endswith("k=4, which is lossless, is 1.06x (0.90-1.20) target alone, which is within chance.")
    assert "1.10x (0.80-1.50) target alone, which is within chance, quality" in lossy
    several = findings([target, perhaps[0], scattered("speculative:k=2", 0.9, 0.8, 1.0)])[0]
    assert several.endswith(
        "k=4 is the fastest of the lossless strategies, 1.06x (0.90-1.20) target alone, which is within chance."
    )


def test_findings_deny_no_speed_up_that_an_interval_allows() -> None:
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    perhaps = [scattered("speculative:k=4", 0.98, 0.85, 1.15), scattered("draft", 0.97, 0.9, 1.05)]
    lossless, lossy, _ = findings([target, *perhaps])
    assert lossless.endswith("is lossless, is 0.98x (0.85-1.15) target alone, which is within chance.")
    assert "draft is the fastest: 0.97x (0.90-1.05) target alone, which is within chance, quality" in lossy
    slower = [scattered("speculative:k=2", 0.99, 0.985, 0.995), scattered("token-cascade", 0.99, 0.985, 0.995)]
    lossless, lossy, _ = findings([target, *slower, *perhaps])
    assert lossless == "No lossless strategy is shown to be faster than target alone."
    assert lossy.startswith("No other strategy whose") and lossy.endswith("is shown to be faster than target alone.")


def test_findings_do_not_speak_of_strategies_that_were_left_out() -> None:
    """Speeds of strategies that failed on some prompts do not count, and lossless ones differ by chance only."""
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    failed = [row(spec, 0.0, -0.1, 0.1, 3.0).model_copy(update={"errors": 1}) for spec in ("speculative:k=4", "draft")]
    slow = [row(spec, 0.0, -0.1, 0.1, 0.9) for spec in ("speculative:k=2", "token-cascade")]
    lossless, lossy, _ = findings([target, *failed, *slow])
    assert lossless == "No lossless strategy that answered every prompt is faster than target alone."
    assert lossy.startswith("No other strategy that answered every prompt and whose quality is not shown to be lower")
    fast = [row(spec, 0.0, -0.1, 0.1, 1.5) for spec in ("speculative:k=2", "token-cascade")]
    lossless, lossy, _ = findings([target, *failed, *fast])
    assert lossless.startswith("Of the lossless strategies that answered every prompt speculative k=2 is the fastest")
    assert lossy.startswith("Of the others that answered every prompt and whose quality")
    few = row("token-cascade", 0.0, -1.0, 1.0, 2.0).model_copy(update={"quality_vs_target_interval_kind": "range"})
    worse = row("draft", -0.3, -0.5, -0.1, 3.0)
    assert findings([target, worse, few])[0].startswith("The quality of every other strategy with an interval is lower")
    unlucky = row("speculative:k=2", -0.2, -0.3, -0.1, 0.9)
    said = findings([target, unlucky, row("draft", 0.0, -0.1, 0.1, 3.0)])[-1]
    assert said.startswith("No lossy strategy's quality differs from the target's")


def test_no_speed_is_ranked_without_an_interval() -> None:
    """In batches, times of answers are not independent, and nothing tells a speed from chance."""
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    batched = {"speed_interval": None, "speed_interval_kind": None, "batch_size": 16}
    others = [row(spec, 0.0, -0.1, 0.1, 1.5).model_copy(update=batched) for spec in ("speculative:k=4", "draft")]
    [said] = findings([target, *others])
    assert "cannot tell them apart" in said
    note = "peeds are the throughput of 16 answers at once, without intervals"
    assert note in " ".join(" ".join(table([target, *others], 80)).split())
    assert note in report(header_of(PLAN), [target, *others], None)


def test_findings_say_whether_all_strategies_were_judged() -> None:
    target, same = row("target", 0.0, 0.0, 0.0, 1.0), row("draft", 0.0, -0.1, 0.1, 3.0)
    few = row("token-cascade", -1.0, -1.0, -1.0, 2.0).model_copy(update={"quality_vs_target_interval_kind": "range"})
    assert findings([target, same])[-1].startswith("No lossy strategy's quality differs from the target's")
    said = findings([target, same, few])[-1]
    assert said.startswith("No lossy strategy that can be judged differs in quality from the target by more than its")


def test_nothing_is_found_among_a_part_of_the_strategies() -> None:
    """`show -s` has some of them; the fastest may be another."""
    assert findings(ROWS, header_of(PLAN)) == findings(ROWS) != []
    assert findings([row for row in ROWS if row.strategy in ("target", "draft")], header_of(PLAN)) == []


def test_nothing_is_found_at_a_temperature_that_lacks_strategies() -> None:
    """A sweep in batches is stopped after one temperature; and a plug-in may not be installed where it is shown."""
    few = [row for row in ROWS if row.temperature == 0 or row.strategy in ("target", "draft")]
    found = findings(few, header_of(PLAN))
    assert found and all(each.startswith("At temperature 0 (greedy),") for each in found)
    foreign = plan_of(strategies=["target", "speculative-cascade:rule=mine"])
    assert findings(ROWS, header_of(foreign)) == findings(ROWS)


def test_a_prompt_that_failed_everywhere_forms_no_category() -> None:
    records = [each for each in records_of(PLAN) if each.category == "writing"]
    lost = [Record(cell=each.cell, problem="gone", error="no") for each in records]
    assert by_category([*records, *lost], PLAN) == {}


def test_bounds_of_categories_have_a_meaning_only_if_they_are_shown() -> None:
    groups = by_category(records_of(PLAN, 16), PLAN)
    view = console(200, color=False)
    for part in category_tables(groups, "f1", view):
        view.print(part)
    text = view.file.getvalue()
    assert re.search(r"0\.\d\d \(0\.\d\d-0\.\d\d\)", text) and "( ): 95% interval over prompts" in text
    assert "the same on every prompt" not in text, "differences to the target, which this table has not"


def test_the_front_has_only_strategies_that_answered_the_most_prompts() -> None:
    target, draft = (row.model_copy(update={"num_prompts": 9}) for row in ROWS[:2])
    easy = draft.model_copy(update={"strategy": "token-cascade", "quality": 1.0, "num_prompts": 3, "errors": 12})
    assert easy not in front([target, draft, easy], lambda _: 1.0)
    assert easy.model_copy(update={"num_prompts": 9}) in front(
        [target, draft, easy.model_copy(update={"num_prompts": 9})], lambda _: 1.0
    )


def test_budgets_are_reported_wherever_the_table_is() -> None:
    spec = "speculative-cascade:rule=opt,alpha=0.3,k=4"
    met = Matched(rule="opt", alpha=0.3, temperature=1.0, k=4, budget=0.33, predicted=0.33, met=True)
    [measured] = [each.target_calls_per_token for each in ROWS if (each.strategy, each.temperature) == (spec, 1.0)]
    assert measured is not None
    line = f"atched at 0.33 target calls per token, temperature 1: 1 of 1 rules, measured {measured:.3f}"
    header = header_of(PLAN, budgets=[met])
    assert line in " ".join(" ".join(table(ROWS, 80, header)).split())
    assert line in report(header, ROWS, None)
    view = console(100, color=False)
    for part in sweep_tables(ROWS, "f1", view, header=header, verbose=True):
        view.print(part)
    assert re.search(rf"opt +alpha = 0\.3 +0\.33 +0\.330 +{measured:.3f}", view.file.getvalue())


def test_a_difference_that_is_the_same_on_every_prompt_has_no_interval_in_words() -> None:
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    equal = row("draft", 0.0, 0.0, 0.0, 2.0).model_copy(update={"quality_vs_target_interval_kind": "no scatter"})
    assert findings([target, equal])[0].endswith("quality +0.000 relative to the target's (on every prompt).")


def test_lossless_strategies_are_not_ranked_by_sampled_quality() -> None:
    """At temperature 1 its mean is below the target's half of the time, and sometimes outside its interval."""
    target = row("target", 0.0, 0.0, 0.0, 1.0)
    unlucky = [row(f"speculative:k={k}", -0.2, -0.3, -0.1, 1.0 + k / 10) for k in (2, 4)]
    assert findings([target, *unlucky]) == [
        "Of the lossless strategies speculative k=4 is the fastest: 1.40x target alone."
    ]
    lucky = row("speculative-cascade:rule=opt,alpha=0.3,k=4", 0.01, -0.1, 0.12, 1.2)
    said = findings([target, *unlucky, lucky])
    assert "speculative k=4" in said[0] and "+0.010 relative to the target's (-0.100 to +0.120)" in said[1]


def test_the_caution_appears_only_for_few_prompts() -> None:
    assert caution(ROWS) is None
    assert caution(rows(records_of(PLAN, prompts=6), PLAN)) is None
    assert "Only 5 prompts" in caution(rows(records_of(PLAN, prompts=5), PLAN))
    failed = [
        record.model_copy(update={"error": "RunError: no"})
        if record.cell.strategy == "draft" and record.problem > "p2"
        else record
        for record in records_of(PLAN)
    ]
    assert caution(rows(failed, PLAN)) == "Too few answers for an interval: draft."
    assert findings(rows(failed, PLAN)) and findings(rows(records_of(PLAN, prompts=5), PLAN)) == []


def test_categories_are_rows_of_their_own_prompts() -> None:
    records = records_of(PLAN)
    found = by_category(records, PLAN)
    assert list(found) == ["writing", "maths"]
    for place, name in enumerate(found):
        wanted = rows([record for record in records if int(record.problem[1:]) % 2 == place], PLAN)
        assert found[name] == wanted and found[name][0].num_prompts == 4
    assert by_category([record for record in records if record.category == "maths"], PLAN) == {}


def test_a_difference_equal_on_every_prompt_is_beyond_chance() -> None:
    worse = row("draft", -1.0, -1.0, -1.0, 4.0).model_copy(update={"quality_vs_target_interval_kind": "no scatter"})
    equal = row("speculative:k=2", 0.0, 0.0, 0.0, 2.0).model_copy(
        update={"quality_vs_target_interval_kind": "no scatter"}
    )
    target = next(each for each in ROWS if each.strategy == "target").model_copy(update={"temperature": 0.0})
    said = " ".join(findings([target, worse, equal])).lower()
    assert "draft differs from the target's quality" in said and "1 of 1" in said
    few = worse.model_copy(update={"num_prompts": 3})
    assert "differs" not in " ".join(findings([target, few]))
    assert is_beyond_chance(worse) and not is_beyond_chance(equal) and not is_beyond_chance(few)
    assert 'class="worse"' in strategies_table([target, worse], "f1")
    assert "worse" not in strategies_table([target, few], "f1")


def test_a_strategy_that_failed_on_some_prompts_is_not_the_fastest() -> None:
    target = next(each for each in ROWS if each.strategy == "target").model_copy(update={"temperature": 0.0})
    lucky = row("draft", 0.3, 0.1, 0.4, 4.0)
    assert "is the fastest" in " ".join(findings([target, lucky]))
    assert "is the fastest" not in " ".join(findings([target, lucky.model_copy(update={"errors": 2})]))
    assert "is the fastest" not in " ".join(findings([target, row("draft", -0.3, -0.4, -0.1, 4.0)]))


def test_older_tables_with_intervals_get_no_caution() -> None:
    older = [each.model_copy(update={"quality_interval_kind": None, "num_prompts": None}) for each in ROWS]
    assert caution(older) is None


def test_random_deferral_is_dropped_where_there_is_no_room() -> None:
    """It gives way to the quality and its difference from the target; the file has it."""
    narrow, wide = ("\n".join(table(ROWS, width)) for width in (80, 200))
    assert "random" not in narrow and "has more columns" in narrow
    assert "random" in wide


def test_failed_answers_form_no_category_of_their_own_and_are_not_compared() -> None:
    plan = plan_of()
    records = records_of(plan)
    failed = Record(cell=records[0].cell, problem=records[0].problem, error="RunError: no")
    groups = by_category([failed, *records[1:]], plan)
    assert set(groups) == {"writing", "maths"}
    assert sum(row.errors for row in groups["writing"]) == 1 and not any(row.errors for row in groups["maths"])
    target = next(each for each in records if each.cell.strategy == "target")
    gone = [Record(cell=each.cell, problem=each.problem, error="no") if each is target else each for each in records]
    [before], [after] = (
        [row for row in rows(some, plan) if row.strategy == "draft" and row.temperature == target.cell.temperature]
        for some in (records, gone)
    )
    assert after.prompts_compared == before.prompts_compared - 1


def test_batched_answers_have_no_seconds_per_prompt() -> None:
    cell = Cell(strategy="target", temperature=0.0, seed=0)
    one, many = (
        _answered([Record(cell=cell, problem="1", rounds=0, looped=0, seconds=2.0, batch_size=n)])[0].seconds
        for n in (1, 4)
    )
    assert (one, many) == (2.0, None)


def test_at_equal_cost_the_better_is_on_the_front_and_zero_quality_counts() -> None:
    row = rows(records_of(plan_of()), plan_of())[0]
    low, high, zero = (
        row.model_copy(update={"strategy": name, "quality": q}) for name, q in (("a", 0.2), ("b", 0.4), ("c", 0.0))
    )
    assert front([low, high], lambda _: 1.0) == [high] and front([zero], lambda _: 1.0) == [zero]


def test_repeats_are_compared_with_the_same_repeat_of_the_target() -> None:
    """An evaluation's repeats draw their own random numbers, so the answers of two repeats differ."""

    def answered(strategy: str, repeat: int, token: int) -> Record:
        cell = Cell(strategy=strategy, temperature=1.0, seed=0, repeat=repeat)
        return Record(cell=cell, problem="p", token_ids=[token], finish_reason="eos")

    records = [answered("target", 0, 1), answered("target", 1, 2), answered("draft", 0, 1), answered("draft", 1, 3)]
    _, draft = rows(records)
    assert (draft.prompts_compared, draft.prompts_same) == (2, 1)


def test_an_empty_answer_does_not_affect_the_mean_likelihood() -> None:
    cell = Cell(strategy="target", temperature=0.0, seed=0)
    said = Record(cell=cell, problem="1", token_ids=[1, 2], log_likelihood=-0.5, finish_reason="eos")
    [row] = rows([said, Record(cell=cell, problem="2", finish_reason="eos")])
    assert row.log_likelihood == -0.5


def test_estimates_are_under_the_right_headings() -> None:
    values = {"acceptance": 0.91, "deferral_rate": 0.12, "mean_tv": 0.23, "max_tv": 0.84}
    made = RuleEstimate(rule="opt", alpha=0.25, temperature=1.0, target_calls_per_token=0.35, **values)
    view = console(120, color=False)
    view.print(estimates_table([made], 4, view))
    text = view.file.getvalue()
    assert re.search("rule +alpha +acceptance +rate +mean TV +max TV", text)
    assert text.splitlines()[-1].split() == ["0.250", "0.910", "0.120", "0.230", "0.840", "0.350"]


def test_prompts_are_counted_once_whatever_the_seeds() -> None:
    """Intervals are over `num_prompts`, and target calls per answer over `answers`."""
    plan = plan_of(seeds=[0, 1])
    found = rows(records_of(plan, prompts=3), plan)
    assert {row.num_prompts for row in found} == {3}
    assert {(row.temperature, row.answers) for row in found} == {(0.0, 3), (1.0, 6)}


def test_work_known_for_only_some_answers_is_not_reported() -> None:
    cell = Cell(strategy="target", temperature=0.0, seed=0)
    one, other = (Record(cell=cell, problem=name, token_ids=[1, 2], flops=n) for name, n in (("1", 6.0), ("2", 10.0)))
    [whole], [part] = rows([one, other]), rows([one, other.model_copy(update={"flops": None})])
    assert (whole.flops_per_token, part.flops_per_token) == (4.0, None)


def test_speeds_of_different_machines_are_not_compared() -> None:
    """Table, report and csv name what differs, and no sentence says what is fastest; scores are still compared."""
    both = [{"device": "x86_64 cpu", "threads": threads} for threads in ("2", "1")]
    alone = header_of(PLAN, environment=both[1])
    calls = [Call.of(alone, None).model_copy(update={"environment": each}) for each in both]
    mixed = alone.model_copy(update={"calls": calls})
    every, fewer = findings(ROWS, alone), findings(ROWS, mixed)
    assert any("target alone" in sentence for sentence in every)
    assert fewer == [sentence for sentence in every if "target alone" not in sentence] and fewer
    warning = "made by 2 calls under different conditions (threads: 2, 1): their speeds cannot be compared."
    assert warning in (differences(mixed) or "")
    assert differences(alone) is None and differences(None) is None
    page = report(mixed, ROWS, None)
    assert warning in page and "target alone" not in page and "2, then 1" in page
    assert page.count("cascli sweep plan.yaml") == 2
    for width in (80, 200):
        assert warning in " ".join(table(ROWS, width, mixed))
    hardware = [
        call.model_copy(update={"environment": {"device": name}}) for call, name in zip(calls, "AB", strict=True)
    ]
    lead = summary(alone.model_copy(update={"calls": hardware}), ROWS)
    assert not any(name in lead for name in (" on A", " on B", "x86_64")) and " on x86_64" in summary(alone, ROWS)
    columns = tidy_rows(ROWS, mixed).records
    assert {(row["threads"], row["hardware"]) for row in columns} == {(None, "x86_64 cpu")}
