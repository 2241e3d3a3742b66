"""Quality of an answer, between 0 and 1, judged by a reference or by the target's own greedy answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cascli.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A hyphen right after a digit or a word is no minus: "5-7" ends with 7. A comma separates thousands, or list items.
_NUMBER = re.compile(
    r"(?:(?<![\w.)])-)?(?:(?:(?<![\d,])\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)(?:\.\d+)?|(?<!\w)\.\d+)(?:[eE][-+]?\d+\b)?"
)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """1 if the two are the same text once normalised."""
    return float(normalised(answer) == normalised(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over normalised words."""
    ours, theirs = normalised(answer).split(), normalised(reference).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * common / (len(ours) + len(theirs))


def number(answer: str, reference: str) -> float:
    """1 if the last number of both is the same; in GSM8K's references that is the one after `####`."""
    ours, theirs = (last_number(text) for text in (answer, reference))
    return float(ours is not None and theirs is not None and abs(float(ours) - float(theirs)) < 1e-6)


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands separators."""
    numbers = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    return numbers[-1].replace(",", "") if numbers else None


def rouge(answer: str, reference: str) -> float:
    """ROUGE-L F-measure, with stemming.

    Raises:
        UsageError: rouge-score is not installed.
    """
    return _rouge("rougeL", answer, reference, stemmed=True)


def rouge_2(answer: str, reference: str) -> float:
    """ROUGE-2 F-measure without stemming, as in T5's own evaluation; papers report its mean times 100.

    Raises:
        UsageError: rouge-score is not installed.
    """
    return _rouge("rouge2", answer, reference, stemmed=False)


def _rouge(kind: str, answer: str, reference: str, *, stemmed: bool) -> float:
    scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=stemmed)
    return _or_empty(answer, reference, lambda: scorer.score(reference, answer)[kind].fmeasure)


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU from sacrebleu, divided by 100; its mean is not the corpus BLEU that papers report."""
    library = _library("sacrebleu")
    return _or_empty(answer, reference, lambda: library.sentence_bleu(answer, [reference]).score / 100)


def bleu_counts(answer: str, reference: str) -> list[int]:
    """Counts from which `cascli.analysis.corpus_bleu` computes corpus BLEU, by sacrebleu with its own tokenizer (13a).

    Nothing matches an empty reference, so that any text written for it counts against the answers.

    Raises:
        UsageError: sacrebleu is not installed.
    """
    library, empty = _library("sacrebleu"), not reference.strip()
    score = library.corpus_bleu([answer], [[answer if empty else reference]])
    lengths = [score.sys_len, 0 if empty else score.ref_len]
    return [int(each) for each in (*lengths, *([0] * len(score.counts) if empty else score.counts), *score.totals)]


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF from sacrebleu, divided by 100."""
    library = _library("sacrebleu")
    return _or_empty(answer, reference, lambda: library.sentence_chrf(answer, [reference]).score / 100)


def _or_empty(answer: str, reference: str, score: Callable[[], float]) -> float:
    """A library's score; if a text is blank, where libraries differ: 1 if both are blank, else 0."""
    empty = [not text.strip() for text in (answer, reference)]
    return float(all(empty)) if any(empty) else float(score())


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """F-measure of the longest common subsequence of tokens: 1 if the answers are the same.

    Meant for greedy answers: at temperature > 0 it is highest for the most peaked distribution, not for the target's.
    """
    if not ours or not theirs:
        return float(list(ours) == list(theirs))
    row = [0] * (len(theirs) + 1)
    for mine in ours:
        diagonal = 0
        for j, other in enumerate(theirs, 1):
            diagonal, row[j] = row[j], diagonal + 1 if mine == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(ours) + len(theirs))


CORPUS_BLEU = "corpus-bleu"
BY_REFERENCE: dict[str, Callable[[str, str], float]] = {
    "exact-match": exact_match,
    "f1": f1,
    "number": number,
    "rouge": rouge,
    "rouge-2": rouge_2,
    "bleu": bleu,
    CORPUS_BLEU: bleu,
    "chrf": chrf,
}
"""Metrics of single answers. A row's quality is their mean, except corpus BLEU, which is computed from counts."""

_LIBRARIES = {
    "rouge": "rouge_score.rouge_scorer",
    "rouge-2": "rouge_score.rouge_scorer",
    "bleu": "sacrebleu",
    CORPUS_BLEU: "sacrebleu",
    "chrf": "sacrebleu",
}


def check(metric: str) -> None:
    """Reject a metric whose library is missing, before anything is answered.

    Raises:
        UsageError: its library is not installed.
    """
    if metric in _LIBRARIES:
        _library(_LIBRARIES[metric])


def _library(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0].replace("_", "-")
        raise UsageError(f"this metric needs {package}: pip install 'cascli[metrics]'") from None
