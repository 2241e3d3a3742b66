"""Does text survive a round trip through the tokenizer, and do its ids fit the models?"""

from __future__ import annotations

from collections.abc import Iterator

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
    broken = [text for text in SAMPLES if _round_trip(tokenizer, text) != text]
    detail = f"{len(SAMPLES)} texts" + (f"; not restored: {broken[0]!r}" if broken else "")
    yield check_of("tokenizer", "round trip", float(len(broken)), 0.0, 0.0, detail)
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


def _round_trip(tokenizer: object, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # type: ignore[operator]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))  # type: ignore[attr-defined]
