"""Does text survive a round trip through the tokenizer, and do its ids fit the models?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cascli.audit.report import Check, check_of, skipped
from cascli.models.pair import Pair
from cascli.models.translation import Translation

SAMPLES = (
    "Who is Buzz Aldrin?",
    "def f(x):\n\treturn x ** 2  # square\n",
    "1969-07-20, 3.14159, 1e-5, 100000",
    "naïve café, Straße, 日本語, Ελληνικά, עברית, 🙂👩‍🚀",
    "  two  spaces,\n\nand blank lines\n",
    "it's we'll they'd I'm",
)


def tokens(pair: Pair) -> Iterator[Check]:
    """Check round trips, end-of-text ids, padded rows, and what a draft with its own tokenizer reads."""
    rows = [count for count in pair.info.masked_rows if count is not None]
    masked = f"{' and '.join(map(str, rows))} padded rows masked, {pair.vocab} tokens"
    smallest = min(rows)
    if pair.translation is None:
        masked = "; ".join([masked, *pair.info.limits])
    yield check_of("tokenizer", "padded rows", float(max(-smallest, 0)), 0.0, 0.0, masked)
    tokenizer = pair.tokenizer
    if tokenizer is None:
        yield skipped("tokenizer", "round trip", "this pair has no tokenizer")
        return
    yield _round_trips(tokenizer)
    outside = [token for token in pair.eos_ids if token >= pair.vocab]
    names = ", ".join(
        f"{token} {tokenizer.convert_ids_to_tokens(token)}" for token in sorted(pair.eos_ids - set(outside))
    )
    yield check_of("tokenizer", "end of text", float(len(outside)), 0.0, 0.0, names or "no end-of-text id")

    if pair.translation is not None:
        yield _two_tokenizers(pair, pair.translation)


def _two_tokenizers(pair: Pair, translation: Translation) -> Check:
    """Check that the draft reads exactly the texts that the target does, token by token and as a whole."""
    draft, broken = translation.draft.contents, []
    for text in SAMPLES:
        ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[misc]
        whole = [token for token in translation.prompt(ids) if token not in translation.draft.special]
        single = [own for token in ids for own in translation.read(token)]
        broken += [text for read in (whole, single) if draft.spelling(read) != text.encode()]
    detail = "; ".join(pair.info.limits) + (f"; not what the draft reads: {broken[0]!r}" if broken else "")
    return check_of("tokenizer", "two tokenizers", float(len(broken)), 0.0, 0.0, detail)


def num_checks(pair: Pair) -> int:
    """The number of checks that `tokens` makes."""
    return 2 if pair.tokenizer is None else 3 + (pair.translation is not None)


def _round_trips(tokenizer: Any) -> Check:
    """Check that texts are restored, or what a tokenizer reads of them, if it normalises them or lacks characters."""
    broken, lacking, normalised = list[str](), 0, 0
    for text in SAMPLES:
        if _decoded(tokenizer, _ids(tokenizer, text)) == text:
            continue
        known = "".join(each for each in text if tokenizer.unk_token_id not in _ids(tokenizer, each))
        is_normalised = _read(tokenizer, known) not in (known, f" {known}")
        lacking += known != text
        normalised += is_normalised
        ids = _ids(tokenizer, known)
        again = _decoded(tokenizer, ids)
        if again != known and not (is_normalised and _ids(tokenizer, again) == ids):
            broken.append(text)
    notes = [
        f"{len(SAMPLES)} texts",
        *([f"the tokenizer normalises white space or characters in {normalised}"] if normalised else []),
        *([f"it lacks characters of {lacking}"] if lacking else []),
        *([f"not restored: {broken[0]!r}"] if broken else []),
    ]
    return check_of("tokenizer", "round trip", float(len(broken)), 0.0, 0.0, "; ".join(notes))


def _read(tokenizer: Any, text: str) -> str:
    """The part of a text that is cut into tokens, after normalisation, with spaces as spaces."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is not None and core.normalizer is not None:
        text = core.normalizer.normalize_str(text)
    if core is not None and core.pre_tokenizer is not None:
        text = "".join(text[start:end] for _, (start, end) in core.pre_tokenizer.pre_tokenize_str(text))
    return text.replace("▁", " ")


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
