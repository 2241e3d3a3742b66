"""ROUGE-2 and BLEU: by hand, in edge cases, against sacrebleu; and the coverage of intervals of corpus BLEU."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from cascli.analysis.corpus_bleu import COUNTS, ORDER, bleu_difference_interval, bleu_interval, corpus_bleu
from cascli.analysis.statistics import Interval
from cascli.sweeps import quality
from cascli.sweeps.records import Record
from cascli.sweeps.table import rows
from tests.test_sweep import record

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

LEAST = 0.90
"""Minimum coverage of intervals labelled 95%."""


# ---- single answers


@pytest.mark.parametrize(
    ("answer", "reference", "wanted"),
    [
        ("the cat sat on the mat", "the cat was on the mat", 3 / 5),  # three of five word pairs in each text
        ("the cat", "the cat sat on", 2 * 1 * (1 / 3) / (1 + 1 / 3)),
        ("a b a b a b", "a b", 2 * 0.2 * 1 / 1.2),  # a pair counts at most as often as in the reference
        ("cats ran home", "cat ran home", 1 / 2),  # no stemming: it would make both pairs match
        ("The Cat, sat!", "the cat sat", 1),
        ("cat", "cat", 0),  # one word makes no pair
        ("mat the on", "on the mat", 0),  # all words match, no pair does
    ],
)
def test_rouge_2_by_hand(answer: str, reference: str, wanted: float) -> None:
    assert quality.rouge_2(answer, reference) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("metric", ["rouge", "rouge-2", "bleu", "corpus-bleu", "chrf"])
def test_texts_without_a_word(metric: str) -> None:
    score = quality.BY_REFERENCE[metric]
    for empty in ("", " \n"):
        assert score(empty, "some words are here") == 0
        assert score("some words are here", empty) == 0
        assert score(empty, "") == 1


def test_bleu_of_an_answer_by_hand() -> None:
    assert quality.bleu("a b c d e", "a b c d f") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert quality.bleu("a b c d", "a b c d e f") == pytest.approx(math.exp(1 - 6 / 4))


# ---- a corpus


def test_corpus_bleu_by_hand() -> None:
    """Totals over totals, not the mean of the two answers' own BLEU."""
    counts = [quality.bleu_counts("a b c d e", "a b c d f"), quality.bleu_counts("a b c d", "a b c d e f")]
    assert counts == [[5, 5, 4, 3, 2, 1, 5, 4, 3, 2], [4, 6, 4, 3, 2, 1, 4, 3, 2, 1]]
    wanted = math.exp(1 - 11 / 9) * (8 / 9 * 6 / 7 * 4 / 5 * 2 / 3) ** 0.25
    assert corpus_bleu(counts) == pytest.approx(wanted, abs=1e-12)
    mean = sum(corpus_bleu([each]) for each in counts) / 2
    assert abs(mean - wanted) > 0.001


def test_corpus_bleu_matches_sacrebleu() -> None:
    """Covers empty and short answers, missing matches, and answers longer and shorter than their references."""
    import sacrebleu

    rng = random.Random(0)
    scores = set()
    for case in range(200):
        words = "abcdefgh"[: rng.randint(2, 8)]
        size = rng.randint(1, 6)
        texts = [[" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(size)] for _ in range(2)]
        answers, references = texts[0], [each or "z" for each in texts[1]]
        counts = [quality.bleu_counts(*both) for both in zip(answers, references, strict=True)]
        wanted = sacrebleu.corpus_bleu(answers, [references]).score / 100
        assert corpus_bleu(counts) == pytest.approx(wanted, abs=1e-12), case
        scores.add(round(wanted, 3))
    assert 0 in scores and len(scores) > 50


def test_nothing_matches_an_empty_reference() -> None:
    whole = quality.bleu_counts("a b c d e", "a b c d e")
    assert quality.bleu_counts("a b c d e", " ") == [5, 0, 0, 0, 0, 0, 5, 4, 3, 2]
    assert quality.bleu_counts("", "") == [0] * COUNTS
    assert corpus_bleu([whole]) == 1
    assert corpus_bleu([whole, quality.bleu_counts("", "")]) == 1
    assert corpus_bleu([whole, quality.bleu_counts("a b c d e", "")]) == pytest.approx(0.5)
    assert corpus_bleu([whole, quality.bleu_counts("", "a b c d e")]) == pytest.approx(math.exp(-1))
    assert corpus_bleu([quality.bleu_counts("", "a b")]) == 0


# ---- its interval


def sentence(rng: np.random.Generator, skill: float, length: int) -> list[int]:
    """N-gram counts of an answer whose words match at random; about as long as its reference."""
    hits = rng.random(length) < skill
    matches = [sum(hits[i : i + n].all() for i in range(length - n + 1)) for n in range(1, ORDER + 1)]
    return [length, max(1, length + int(rng.integers(-3, 4))), *matches, *(max(0, length - n) for n in range(ORDER))]


def pairs(rng: np.random.Generator, n: int, differing: float, loss: float) -> tuple[list[list[int]], list[list[int]]]:
    """Answers of two writers to `n` prompts: the same, except for a share where one of them is worse."""
    ours, theirs = [], []
    for _ in range(n):
        skill, length = rng.beta(6, 2), int(rng.integers(3, 30))
        theirs.append(sentence(rng, skill, length))
        ours.append(sentence(rng, skill * (1 - loss), length) if rng.random() < differing else theirs[-1])
    return ours, theirs


@pytest.mark.parametrize("n", [10, 20, 80])
@pytest.mark.parametrize(("differing", "loss"), [(1.0, 0.2), (0.5, 0.0), (0.1, 0.3)])
def test_intervals_of_corpus_bleu_cover(n: int, differing: float, loss: float) -> None:
    """Covers one corpus, and the difference of two, sampled from a large one that is the truth."""
    rng = np.random.default_rng(0)
    ours, theirs = pairs(rng, 2000, differing, loss)
    truth, change = corpus_bleu(theirs), corpus_bleu(ours) - corpus_bleu(theirs)
    alone, together = [], []
    for _ in range(200):
        places = rng.integers(len(ours), size=n)
        a, b = [ours[i] for i in places], [theirs[i] for i in places]
        one, both = bleu_interval(b), bleu_difference_interval(a, b)
        assert one is not None and both is not None
        alone.append(one.low <= truth <= one.high)
        if both.kind == "95%":
            together.append(both.low <= change <= both.high)
    assert np.mean(alone) >= LEAST and np.mean(together) >= LEAST


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    """The difference of answers that mostly agree varies much less than the score of either corpus."""
    ours, theirs = pairs(np.random.default_rng(1), 80, 0.3, 0.2)
    one, both = bleu_interval(theirs), bleu_difference_interval(ours, theirs)
    assert one is not None and both is not None and one.kind == both.kind == "95%"
    assert both.high - both.low < 0.8 * (one.high - one.low)


def test_a_few_prompts_have_a_range() -> None:
    ours, theirs = pairs(np.random.default_rng(2), 5, 1.0, 0.3)
    alone = sorted(corpus_bleu([each]) for each in theirs)
    assert bleu_interval(theirs) == Interval(alone[0], alone[-1], "range")
    assert bleu_interval(theirs[:1]) is None and bleu_difference_interval([], []) is None
    assert bleu_difference_interval(theirs, theirs) == Interval(0.0, 0.0, "no scatter")
    found = bleu_difference_interval(ours, theirs)
    assert found is not None and found.kind == "range" and found.low < 0


# ---- the table


def scored(strategy: str, problem: str, answer: str, reference: str) -> Record:
    counts = quality.bleu_counts(answer, reference)
    return record(strategy, problem, quality.bleu(answer, reference), counts=counts)


REFERENCES = ["the house is small today", "a red car drives by", "we eat bread and cheese", "it rains in the city"]


def test_a_row_has_the_bleu_of_all_its_answers() -> None:
    import sacrebleu

    worse = [text.replace("e", "E", 1) for text in REFERENCES[:3]]
    records = [scored("target", f"p{i}", text + " yes", text) for i, text in enumerate(REFERENCES)]
    records += [scored("draft", f"p{i}", text, REFERENCES[i]) for i, text in enumerate(worse)]
    records.append(Record(cell=records[-1].cell, problem="p3", error="RunError: no"))
    target, draft = rows(records)
    assert target.quality == pytest.approx(
        sacrebleu.corpus_bleu([text + " yes" for text in REFERENCES], [REFERENCES]).score / 100
    )
    assert draft.quality == pytest.approx(sacrebleu.corpus_bleu(worse, [REFERENCES[:3]]).score / 100)
    base = sacrebleu.corpus_bleu([text + " yes" for text in REFERENCES[:3]], [REFERENCES[:3]]).score / 100
    assert draft.quality_vs_target == pytest.approx(draft.quality - base)  # on the prompts that both have answered
    assert target.quality_vs_target == 0 and target.quality_vs_target_interval_kind == "no scatter"
    assert abs(draft.quality - np.mean([each.quality for each in records[4:7]])) > 0.001


def test_an_empty_answer_counts_through_its_missing_words() -> None:
    (target,) = rows([scored("target", f"p{i}", REFERENCES[i] if i else "", REFERENCES[i]) for i in range(2)])
    assert target.quality == pytest.approx(math.exp(1 - 10 / 5)) and target.num_prompts == 2


def test_corpus_rows_do_not_depend_on_the_order_of_records_and_pool_seeds() -> None:
    rng = random.Random(3)
    texts = [[" ".join(rng.choices("abcde", k=rng.randint(4, 12))) for _ in range(2)] for _ in range(12)]
    records = [scored(spec, f"p{i}", *both) for spec in ("target", "draft") for i, both in enumerate(texts)]
    assert rows(records)[0] == rows([*reversed(records)])[1]
    again = [each.model_copy(update={"cell": each.cell.model_copy(update={"repeat": 1})}) for each in records]
    once, twice = rows(records)[0], rows([*records, *again])[0]
    assert once.quality == pytest.approx(twice.quality) and twice.num_prompts == 12


def test_a_strategy_without_an_answer_has_no_bleu() -> None:
    failed = Record(cell=record("draft", "p0", None).cell, problem="p0", error="RunError: no")
    target, draft = rows([scored("target", "p0", REFERENCES[0], REFERENCES[0]), failed])
    assert target.quality == 1 and draft.quality is None and draft.quality_vs_target is None
