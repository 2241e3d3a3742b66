"""Numbers on the screen, in a table file and in JSON agree, and are of what their labels state."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cascli import Pair, compare, generate, load_pair
from cascli.analysis import tidy
from cascli.analysis.answer_costs import AnswerCosts, Ratio
from cascli.analysis.comparison import Row, summarise
from cascli.analysis.corpus_bleu import COUNTS, bleu_interval, corpus_bleu
from cascli.analysis.distances import nats_per_answer
from cascli.analysis.explanation import explain
from cascli.analysis.statistics import difference_interval, rate_ratio_interval, ratio_interval
from cascli.prompts import Prompt
from cascli.render.answer_costs import ANSWERS, _distances, cost_verdict, outcome, table_notes
from cascli.render.explanation import sentence
from cascli.render.export import markdown
from cascli.render.numbers import bounds_text, count, counted, nats, operations, percent, rate, size
from cascli.render.summary import lines, one_line, totals
from cascli.render.sweep import sweep_tables
from cascli.render.sweep_words import scatter_kinds
from cascli.render.table import scatter_line, speed_text
from cascli.render.verdict import verdict
from cascli.sweeps.records import Record
from cascli.sweeps.table import SweepRow, rows, tidy_rows
from tests.sweeps import header_of, plan_of, records_of
from tests.test_screen import console


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("tiny-random", device="cpu")


ASKED = [Prompt(("one",), "a"), Prompt(("two", "and three?"), "b"), Prompt(("four four four",), "c")]


def nats_cell(row: Row | SweepRow) -> str:
    [column] = [column for column in _distances(greedy=False) if column.heading.startswith("nats")]
    return column.cell(row)


# ---- what an answer is


def test_nats_per_answer_agree_on_the_screen_and_in_a_file(pair: Pair) -> None:
    """The turns of a conversation are one answer; the bug: the file counted turns."""
    raced = compare(pair, ASKED, ["target", "speculative-cascade:rule=min-p,alpha=0.3,k=2"], max_new_tokens=6,
                    temperature=1, measure=False)  # fmt: skip
    row = raced.summary[1]
    assert row.distances is not None and row.distances.kl > 0 and (row.num_prompts, row.num_answers) == (3, 4)
    record = tidy.of_comparison(raced).records[1]
    assert record["kl_per_answer"] == row.distances.kl / 3 and nats_cell(row) == nats(row.distances.kl / 3)


def test_nats_per_answer_of_a_sweep_do_not_grow_with_its_seeds(pair: Pair) -> None:
    """Two seeds and three repeats are six answers to a prompt."""
    plan = plan_of(strategies=["target", "speculative:k=2"], temperatures=[1.0], seeds=[0, 1], runs=3)
    run = compare(pair, "hi", ["speculative-cascade:rule=min-p,alpha=0.3,k=2"], max_new_tokens=6, measure=False).runs[0]
    known = run.metrics.distances
    assert known is not None
    known = known.model_copy(update={"kl": 2.5})
    records = [each.model_copy(update={"distances": known, "looped": 0}) for each in records_of(plan, 4)]
    [row] = [row for row in rows(records, plan) if row.strategy == "speculative:k=2"]
    assert (row.num_prompts, row.answers) == (4, 24) and nats_cell(row) == "2.5"
    assert nats_per_answer(row.distances or known, row.conversations, greedy=False) == 2.5
    [record] = [each for each in tidy_rows([row], header_of(plan)).records if each["strategy"] == "speculative:k=2"]
    assert record["kl_per_answer"] == 2.5


# ---- intervals


def test_a_comparison_with_itself_has_no_scatter() -> None:
    """a / b / c * d need not be exactly 1 where both are the same: rounding is not scatter."""
    times = [(10.0 + i, 0.1 * (i + 1), 10.0 + i, 0.1 * (i + 1)) for i in range(9)]
    products = {a / b / c * d for a, b, c, d in times}
    assert len(products) > 1, "nothing is rounded here: other numbers are wanted"
    for prompts in (times, times[:3]):
        found = rate_ratio_interval(prompts)
        assert found is not None and found.kind == "no scatter"


def test_differences_equal_up_to_rounding_have_no_scatter() -> None:
    gains = [0.7 - 0.8, 0.2 - 0.3, 0.1 - 0.2]
    assert len({*gains}) > 1
    for several in (gains, gains * 4):
        found = difference_interval(several)
        assert found is not None and found.kind == "no scatter"
    assert difference_interval([-0.1, -0.1 + 1e-6] * 4) != difference_interval([-0.1] * 8)


def test_speeds_do_not_depend_on_the_order_of_answers() -> None:
    """A killed and resumed sweep, or Ray's workers, save them in another order."""
    prompts = [(10.0 + i, 1.0 + i % 3, 10.0, 1.0 + i % 4) for i in range(9)]
    assert (
        rate_ratio_interval(prompts)
        == rate_ratio_interval(prompts[::-1])
        == rate_ratio_interval(prompts[4:] + prompts[:4])
    )


def test_one_prompt_without_calls_still_leaves_an_interval() -> None:
    """One zero of eight ratios leaves an interval; many zeros leave a logarithm no scatter: only a range is given."""
    some = ratio_interval([[(float(calls), 10.0)] for calls in (0, 4, 5, 6, 5, 4, 6, 5)])
    assert some is not None and some.kind == "95%" and 0 < some.low < 35 / 80 < some.high < 1
    few = ratio_interval([[(float(calls), 10.0)] for calls in (0, 0, 0, 0, 0, 0, 0, 5)])
    assert few is not None and few == (0.0, 0.5, "range")


def costs_of(ratio: Ratio | None, withheld: str | None = None) -> AnswerCosts:
    return AnswerCosts(
        target_calls_per_answer=1.0, looped_share=0.0, share_cut=0.0, lossless="speculative:k=2",
        calls_to_lossless=ratio, withheld=withheld,
    )  # fmt: skip


def ratio_of(mean: float, low: float, high: float, kind: Any, prompts: int = 8) -> Ratio:
    return Ratio(of_means=mean, mean=mean, interval=(low, high), interval_kind=kind, prompts=prompts)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        (ratio_of(0.0, 0.0, 0.0, "no scatter"), "fewer calls"),
        (ratio_of(1.0, 1.0, 1.0, "no scatter"), "the same"),
        (ratio_of(0.0, 0.0, 0.0, "no scatter", prompts=3), "few prompts"),
        (ratio_of(0.1, 0.0, 0.5, "range"), "not clear"),
        (ratio_of(0.1, 0.0, 0.5, "range", prompts=5), "few prompts"),
        (ratio_of(0.5, 0.4, 0.6, "95%"), "fewer calls"),
        (ratio_of(1.5, 1.4, 1.6, "95%"), "more calls"),
    ],
)
def test_the_outcome_depends_on_the_interval_and_the_number_of_prompts(ratio: Ratio, said: str) -> None:
    assert outcome(costs_of(ratio)) == said


def test_corpus_bleu_is_inside_its_interval_even_if_each_answer_alone_is_0() -> None:
    """Each answer matches only some orders of n-grams: alone they have BLEU 0, together more."""

    def answer(matches: list[int]) -> list[int]:
        return [12, 12, *matches, 12, 11, 10, 9]

    spread = [answer([3, 0, 0, 0]), answer([0, 2, 0, 0]), answer([0, 0, 1, 0]), answer([0, 0, 0, 1])] * 3
    none = [[3, 12, 0, 0, 0, 0, 3, 2, 1, 0]] * 12
    for answers in (spread, none):
        assert all(len(each) == COUNTS for each in answers)
        found, value = bleu_interval(answers), corpus_bleu(answers)
        assert found is not None and found.kind == "95%" and found.low <= value < found.high
    few = bleu_interval(spread[:4])
    assert few is not None and few.low <= corpus_bleu(spread[:4]) <= few.high


def test_dependent_times_have_no_interval_over_prompts(pair: Pair) -> None:
    specs = ["target", "speculative:draft=suffix,k=2", "speculative:draft=suffix,remember=2,k=2"]
    raced = compare(pair, ASKED, specs, max_new_tokens=4, measure=False)
    target, plain, remembering = raced.summary
    assert target.speed_interval_kind == "no scatter" and speed_text(target) == "1.00x"
    assert (plain.speed_interval_over, plain.speed_interval_kind) == ("prompts", "range") and "[" in speed_text(plain)
    assert remembering.speed_interval is None and remembering.speed_vs_target is not None
    # Known from `earlier_texts`, whatever parameter makes a drafter remember.
    foreign = [run.model_copy(update={"params": run.params | {"remember": 0}}) for run in raced.runs]
    assert summarise([[foreign[i::3] for i in range(3)]])[2].speed_interval is None
    twice = summarise([[raced.runs[i::3] for i in range(3)]] * 2)[2]
    assert twice.speed_interval_over == "repeats"
    together = [run.model_copy(update={"batch_size": 3}) for run in raced.runs]
    assert summarise([[together[i::3] for i in range(3)]])[1].speed_interval is None
    assert scatter_line(raced.summary) == "speeds: [ ] range over prompts"
    assert "\nspeeds: [ ] range over prompts\n" in markdown(raced.summary)


# ---- sweeps


def test_speeds_of_a_sweep_have_an_interval_over_prompts() -> None:
    plan = plan_of(strategies=["target", "speculative:k=2"], temperatures=[0.0])
    records = [
        each.model_copy(update={"seconds": each.seconds * (1 + int(each.problem[1:]) / 5)})
        if each.cell.strategy != "target" and each.seconds else each for each in records_of(plan)
    ]  # fmt: skip
    target, row = rows(records, plan)
    assert target.speed_interval_kind == "no scatter"
    assert row.speed_interval is not None and row.speed_interval_kind == "95%" and row.speed_vs_target is not None
    assert row.speed_interval[0] < row.speed_vs_target < row.speed_interval[1]
    wanted = rate_ratio_interval([(10.0, 1.03 * (1 + i / 5), 10.0, 1.0) for i in range(8)])
    assert wanted is not None and row.speed_interval == pytest.approx(wanted[:2])
    shown = console(200)
    with shown.capture() as caught:
        for part in sweep_tables([target, row], "f1", shown):
            shown.print(part)
    assert f"({row.speed_interval[0]:.2f}-{row.speed_interval[1]:.2f})" in caught.get()
    [_, record] = tidy_rows([target, row], header_of(plan)).records
    assert (record["speed_vs_target_low"], record["speed_vs_target_kind"]) == (row.speed_interval[0], "95%")
    batches = [each.model_copy(update={"batch_size": 4}) for each in records]
    assert rows(batches, plan)[1].speed_interval is None and rows(batches, plan)[1].speed_vs_target is not None


def test_failed_answers_are_excluded_from_both_sides_of_a_comparison() -> None:
    """One answer is missing for one seed: speed and difference use only the answers that both have."""
    plan = plan_of(strategies=["target", "speculative:k=4"], temperatures=[1.0], seeds=[0, 1])
    known = {"target": (0.2, 0.8), "speculative:k=4": (0.1, 0.7)}

    def made(each: Record) -> Record:
        if (each.cell.strategy, each.problem, each.cell.seed) == ("speculative:k=4", "p0", 1):
            return Record(cell=each.cell, problem=each.problem, error="RunError: no")
        slow = 50.0 if each.problem == "p0" and each.cell.seed == 1 else 1.0
        return each.model_copy(update={"quality": known[each.cell.strategy][each.cell.seed], "seconds": slow})

    target, row = rows(map(made, records_of(plan)), plan)
    assert row.errors == 1 and row.quality_vs_target == pytest.approx(-0.1), "by prompts it would be -0.1375"
    assert row.speed_vs_target == pytest.approx(1.0), "the target alone was slow there"
    assert (row.prompts_compared, target.prompts_compared) == (15, 16)


def test_mean_acceptance_length_counts_all_rounds() -> None:
    """Rounds of answers for which prompt lookup drafted nothing count too, even in folders that did not record them."""
    plan = plan_of(strategies=["target", "speculative:draft=prompt-lookup,k=2"], temperatures=[0.0])
    records = records_of(plan, 2)
    for rounds in (0, 10):
        some = [
            each.model_copy(update={"drafted": 0, "accepted": 0, "tested": 0, "rounds": rounds, "target_calls": 10})
            if each.problem == "p1" and each.cell.strategy != "target"
            else each
            for each in records
        ]
        assert rows(some, plan)[1].mean_acceptance_length == 1 + 20 / 20


def test_mean_acceptance_length_of_prompt_lookup_counts_empty_rounds(pair: Pair) -> None:
    asked = [Prompt(("nothing twice",), "a"), Prompt(("again again again again again",), "b")]
    raced = compare(pair, asked, ["target", "speculative:draft=prompt-lookup,k=3"], max_new_tokens=20, measure=False)
    row = raced.summary[1]
    drafted = [run.metrics.num_draft_tokens for run in raced.runs if run.strategy != "target"]
    rounds = sum(run.metrics.num_rounds for run in raced.runs if run.strategy != "target")
    accepted = sum(run.metrics.num_accepted_draft_tokens for run in raced.runs if run.strategy != "target")
    assert any(drafted) and row.mean_acceptance_length == 1 + accepted / rounds


# ---- words


def test_small_numbers_are_not_shown_as_0_nor_shares_rounded_to_0_or_100() -> None:
    assert [nats(value) for value in (None, 0, 0.004, 0.04, 0.06, 35.81)] == ["–", "0", "0.004", "0.04", "0.1", "35.8"]
    assert [percent(share) for share in (0, 0.004, 0.005, 0.5, 0.995, 0.999, 1)] == [
        "0%", "<1%", "<1%", "50%", ">99%", ">99%", "100%",
    ]  # fmt: skip
    assert [count(value) for value in (2.0, 2.5, 3.5, 24.0)] == ["2", "2.5", "3.5", "24"]
    assert [rate(value) for value in (None, 0.0, 0.0012, 0.5, 0.9988, 1.0)] == [
        "–",
        "0.00",
        "0.001",
        "0.50",
        "0.999",
        "1.00",
    ]
    assert [size(value) for value in (0, 389_120, 2e6, 34e6, 1.5e9)] == ["0 MB", "0.39 MB", "2 MB", "34 MB", "1.5 GB"]
    assert [operations(value) for value in (0.0, 4.1e5, 3.09e9)] == ["0.00", "0.00041", "3.09"]


@pytest.mark.parametrize(
    ("bounds", "null", "shown"),
    [
        ((1.0041, 1.0598), 1, "(1.004-1.06)"),
        ((0.46, 0.99784), 1, "(0.46-0.998)"),
        ((0.46, 1.002), 1, "(0.46-1.00)"),
        ((0.46, 0.99784), None, "(0.46-1.00)"),
        ((-0.1, -0.0012), 0, "(-0.10 to -0.001)"),
        ((-0.1, 0.0012), 0, "(-0.10 to +0.00)"),
    ],
)  # fmt: skip
def test_bounds_are_on_the_side_that_their_verdict_says(bounds: tuple[float, float], null: float, shown: str) -> None:
    assert bounds_text(bounds, "95%", null=null) == shown


def test_a_ratio_with_a_verdict_is_not_shown_as_1() -> None:
    costs = costs_of(ratio_of(0.998, 0.9965, 0.9995, "95%"))
    assert outcome(costs) == "fewer calls"
    [(shown, _)] = [(column.cell(priced("a", costs)), column) for column in ANSWERS if "against" in column.heading]
    assert shown == "0.998x (0.997-0.9995)"


def priced(spec: str, costs: AnswerCosts | None) -> Any:
    return SimpleNamespace(strategy=spec, costs=costs)


def test_notes_say_what_brackets_and_nats_are() -> None:
    some, few = costs_of(ratio_of(0.5, 0.4, 0.6, "95%")), costs_of(ratio_of(0.5, 0.4, 0.6, "range", 3))
    other = some.model_copy(update={"lossless": "speculative:k=4"})
    said = table_notes([priced("a", some), priced("b", few)], greedy=None)
    assert "against speculative:k=2; length" in said and "( ) 95% interval over prompts, [ ] range over prompts" in said
    assert "nats: KL(pi || p), at temperature 0 regret log max p1" in said
    assert "95%" not in table_notes([priced("b", few)], greedy=True)
    ran = [priced("speculative:k=2", None), priced("speculative:k=4", None)]
    several = table_notes([*ran, priced("b", other), priced("a", some)], greedy=False)
    assert "against speculative:k=4 or speculative:k=2, whichever has the strategy's own parameters" in several
    assert "of equals speculative:k=2; length" in several, "the first that ran, not the first that is named"


def test_one_rule_with_cut_answers_does_not_decide_the_cost_verdict() -> None:
    told = priced("speculative-cascade:rule=opt", costs_of(ratio_of(0.5, 0.4, 0.6, "range", 3)))
    cut = priced("speculative-cascade:rule=chow", costs_of(None, "1 of 3 answers of it were cut off by the limit"))
    assert cost_verdict([told, cut]) is None
    assert "is not shown because 1 of 3" in (cost_verdict([cut]) or "")


def fast(spec: str, speed: float, low: float, high: float, **more: Any) -> Row:
    values = dict.fromkeys(Row.model_fields, None) | {"strategy": spec, "oracle": False, "tokens": 100, "seconds": 1.0}
    values |= {"depends_on_rounds": False, "lossless": True, "speed_vs_target": speed, "speed_interval": (low, high)}
    return Row.model_validate(values | {"speed_interval_kind": "95%"} | more)


def test_a_slower_strategy_can_also_be_within_chance() -> None:
    target = fast("target", 1.0, 1.0, 1.0, speed_interval_kind="no scatter")
    assert verdict([target, fast("speculative:k=2", 0.86, 0.67, 1.1)], fancy=False) == (
        "None that calls the target is as fast with the same distribution (best: speculative k=2, 0.86x,"
        " within chance (95% 0.67-1.10))."
    )
    assert "chance" not in (verdict([target, fast("speculative:k=2", 0.5, 0.4, 0.6)]) or "")


def explained(measured: float, best: float | None, missed: float) -> Any:
    return SimpleNamespace(
        strategy="speculative:k=2", measured_speed_up=measured, predicted_speed_up=1.2, v_extrapolated=False,
        with_prompt=True, acceptance=0.5, tokens_per_round=2.0, c=0.2, v=1.1, k=2, stop=None, drafted_per_round=None,
        break_even_acceptance=0.4, best_k=4, best_k_or_more=False, best_speed_up=best, measured_over_predicted=missed,
        bottleneck=None, noise=0.1, predicted_with_overhead=None, without_it=None, predicted=1.2, overhead=None,
        outside_per_round=None, outside_per_draft=None, measured_alone=True,
        expected_at_best=None if best is None else best * missed,
    )  # fmt: skip


def test_an_explanation_does_not_contradict_its_verdict() -> None:
    about, slower = sentence(explained(0.9955, 1.3, 0.9)), sentence(explained(0.9, 1.3, 0.7))
    assert "Slower" not in about and "best k 4 (1.17x if later drafts pass as often)" in about
    assert "Slower than target alone here." in slower
    assert "break even at an acceptance of 0.40, but at 70% of what is predicted, as here, no k gains" in slower
    assert "no k gains (best k 4: 0.91x)" in slower
    older = explained(1.5, 1.3, 0.9)  # a document without the best speed-up
    older.best_speed_up = older.expected_at_best = None
    assert "best k 4." in sentence(older)
    noisy = explained(0.9, 1.3, 0.7)
    noisy.noise, noisy.predicted, noisy.best_k = 1.92, 0.95, None
    assert "is predicted to break even at an acceptance of 0.40, no k is predicted to gain" in sentence(noisy)
    agreed = explained(0.9, 1.3, 0.7)
    agreed.predicted = agreed.predicted_speed_up = 0.95
    assert "no k is expected to gain (best k 4: 0.91x)" in sentence(agreed)


def test_a_bench_reports_the_same_speed_everywhere(tmp_path: Path, pair: Pair) -> None:
    """The bug: the file used medians, the screen totals."""
    from cascli.jobs.bench import bench

    found = bench(pair, contexts=[16], blocks=[1, 3], repeats=2, synthetic_acceptance=0.8, ks=[2], tokens=12)
    record = next(each for each in tidy.of_bench(found).records if each.get("k") == 2 and each["kind"] == "synthetic")
    assert found.synthetic is not None
    assert record["speed_vs_target"] == found.synthetic.accounts[0].measured_speed_up


def test_corpus_bleu_compares_only_answers_that_both_have() -> None:
    """Both strategies give the same answers for each seed, and one of the target's failed: the difference is 0."""
    plan = plan_of(strategies=["target", "speculative:k=4"], temperatures=[1.0], seeds=[0, 1])
    shares = [[12, 12, 9 - i, 6 - i % 3, 4, 2, 12, 11, 10, 9] for i in range(8)]

    def made(each: Record) -> Record:
        if (each.cell.strategy, each.problem, each.cell.seed) == ("target", "p0", 1):
            return Record(cell=each.cell, problem=each.problem, error="RunError: no")
        return each.model_copy(update={"counts": shares[(int(each.problem[1:]) + 3 * each.cell.seed) % 8]})

    _, row = rows(map(made, records_of(plan)), plan)
    assert row.prompts_compared == row.answers - 1
    assert (row.quality_vs_target, row.quality_vs_target_interval_kind) == (0.0, "no scatter")
    assert row.quality is not None and row.quality > 0
    # An answer without counts, as in a damaged folder, is compared with nothing.
    known = [*map(made, records_of(plan))]
    bare = [each.model_copy(update={"counts": []}) if each.cell.strategy == "target" else each for each in known]
    assert rows(bare, plan)[1].quality_vs_target is None and rows(bare, plan)[1].quality == row.quality


def test_the_account_covers_the_same_answers_as_the_table(pair: Pair) -> None:
    """The account includes answers for which nothing was drafted, as with prompt lookup."""
    how = {"max_new_tokens": 24, "temperature": 1.0, "measure": False}
    raced = compare(pair, ["one", "two"], ["target", "speculative:k=2"], **how)
    other, silent = raced.runs[1], raced.runs[3]
    nothing = {"num_draft_tokens": 0, "num_accepted_draft_tokens": 0}
    runs = [*raced.runs[:3], silent.model_copy(update={"metrics": silent.metrics.model_copy(update=nothing)})]
    why = explain(runs)
    tokens, rounds = len(other.token_ids), other.metrics.num_rounds
    both = (tokens + len(silent.token_ids)) / (rounds + silent.metrics.num_rounds)
    assert why is not None and why.tokens_per_round == both != tokens / rounds


def test_brackets_of_a_sweeps_speeds_are_explained() -> None:
    plan = plan_of(strategies=["target", "speculative:k=2"], temperatures=[0.0])
    table = [row.model_copy(update={"quality_interval_kind": "no scatter"}) for row in rows(records_of(plan), plan)]
    assert not scatter_kinds(table)
    table[1] = table[1].model_copy(update={"speed_interval": (0.5, 0.7), "speed_interval_kind": "range"})
    assert "[ ]: lowest to highest prompt" in scatter_kinds(table)


@pytest.mark.parametrize(("number", "said"), [(1, "1 prompt was"), (0, "0 prompts were"), (20, "20 prompts were")])
def test_a_count_of_one_is_singular(number: int, said: str) -> None:
    assert counted(number, "prompt was", "prompts were") == said
    assert counted(number, "prompt") == said.rpartition(" ")[0]


def test_a_short_answer_is_described_in_the_singular(pair: Pair) -> None:
    run = generate(pair, prompt_ids=[1, 2], strategy="speculative:k=1", max_new_tokens=1)
    assert ": 1 token in " in next(lines(run)) and one_line(run).startswith("1 token (limit)")
    assert totals([run]).startswith("1 answer: 1 token in ")
