"""How good an answer is, between 0 and 1: by a reference, or by the target's own greedy answer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cascli.errors import UsageError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A minus right after a digit or a word is none: "5-7" ends with 7.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+\b)?")


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
    """The last number of a text, without the commas between its thousands."""
    numbers = _NUMBER.findall(text)
    return numbers[-1].replace(",", "") if numbers else None


def rouge(answer: str, reference: str) -> float:
    """ROUGE-L F-measure, with stemming.

    Raises:
        UsageError: rouge-score is not installed.
    """
    scorer = _library("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=True)
    return float(scorer.score(reference, answer)["rougeL"].fmeasure)


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU of sacrebleu over 100; a mean of it is not the corpus BLEU that papers give."""
    return float(_library("sacrebleu").sentence_bleu(answer, [reference]).score) / 100


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF of sacrebleu over 100."""
    return float(_library("sacrebleu").sentence_chrf(answer, [reference]).score) / 100


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """F-measure of the longest common subsequence of tokens: 1 if the answers are the same.

    Of greedy answers: at temperature > 0 it is highest for the most peaked distribution, not for the target's.
    """
    if not ours or not theirs:
        return float(list(ours) == list(theirs))
    row = [0] * (len(theirs) + 1)
    for mine in ours:
        diagonal = 0
        for j, other in enumerate(theirs, 1):
            diagonal, row[j] = row[j], diagonal + 1 if mine == other else max(row[j], row[j - 1])
    return 2 * row[-1] / (len(ours) + len(theirs))


BY_REFERENCE: dict[str, Callable[[str, str], float]] = {
    "exact-match": exact_match,
    "f1": f1,
    "number": number,
    "rouge": rouge,
    "bleu": bleu,
    "chrf": chrf,
}


_LIBRARIES = {"rouge": "rouge_score.rouge_scorer", "bleu": "sacrebleu", "chrf": "sacrebleu"}


def check(metric: str) -> None:
    """Refuse a metric before anything is answered for it.

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
