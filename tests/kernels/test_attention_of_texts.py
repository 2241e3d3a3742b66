"""Tokens of several texts in one block, each attending to its own text: ragged lengths, windows and caps."""

from __future__ import annotations

import pytest
import torch

from cascli.models.gpu import texts_attention
from tests.kernels.test_attention import BOUND, CAPACITY, wanted

Text = tuple[int, int, int]
"""A text's place, the number of tokens before, and the number of new tokens."""
RAGGED: list[list[Text]] = [
    [(1, 62, 5), (3, 0, 3), (0, 301, 1), (2, 128, 9)],  # longer runs than a program takes, starting at any remainder
    [(3, 7, 2), (2, 9, 1), (1, 10, 1), (4, 0, 1), (4, 0, 1)],  # positions that seem to continue; and padding
]
PLACES = 5


def states(texts: list[Text], heads: int, shared: int, width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Query, keys and values of all places; NaN beyond a text's end and in places without a text."""
    generator = torch.Generator().manual_seed(len(texts))
    n = sum(count for _, _, count in texts)
    query = torch.randn(1, heads, n, width, generator=generator)
    cache = torch.randn(2, PLACES, shared, CAPACITY, width, generator=generator)
    ends = {place: before + count for place, before, count in texts}
    for place in range(PLACES):
        cache[:, place, :, ends.get(place, 0) :] = torch.nan
    return [each.to(dtype) for each in (query, *cache)]


def rows(texts: list[Text], where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    each = [(place, before + i) for place, before, count in texts for i in range(count)]
    places, positions = torch.tensor(each, device=where).T.contiguous()
    return places, positions


def errors(found: torch.Tensor, given: list[torch.Tensor], texts: list[Text], window: int, cap: float) -> list[float]:
    """Largest error of each text, compared with its own attention in float64."""
    query, keys, values = (each.cpu() for each in given)
    begin, result = 0, []
    for place, before, count in texts:
        own = (query[:, :, begin : begin + count], keys[place : place + 1], values[place : place + 1])
        exact = wanted(*own, before, window, cap)
        difference = found[:, begin : begin + count].double().cpu() - exact
        result.append(float(difference.abs().nan_to_num(torch.inf).max()))
        begin += count
    return result


@pytest.fixture
def few_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks per part, and fewer programs to interpret."""
    monkeypatch.setattr("cascli.kernels.attention._MOST_PARTS", 2)


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize(
    ("heads", "shared", "width", "window", "cap"),
    [(4, 2, 16, 0, 0.0), (7, 1, 24, 9, 0.0), (2, 2, 64, 70, 30.0), (40, 1, 16, 0, 0.0)],
)
def test_each_text_attends_to_itself(
    heads: int, shared: int, width: int, window: int, cap: float, dtype: torch.dtype, where: torch.device
) -> None:
    from cascli.kernels.attention import attend

    for texts in RAGGED:
        given = [each.to(where) for each in states(texts, heads, shared, width, dtype)]
        places, positions = rows(texts, where)
        found = attend(*given, positions, places=places, scale=width**-0.5, window=window, cap=cap)
        assert found.dtype == dtype
        bound = max(BOUND[dtype], 2e-6 * cap) if where.type == "cuda" else BOUND[dtype]
        assert max(errors(found, given, texts, window, cap)) < bound, texts


@pytest.mark.parametrize(("window", "cap"), [(0, 0.0), (9, 0.0), (70, 30.0)])
def test_attend_texts_in_torch(window: int, cap: float) -> None:
    for texts in RAGGED:
        query, *cache = states(texts, 6, 2, 16, torch.float32)
        cache = [each.nan_to_num(1e4) for each in cache]  # real buffers hold old states there, never NaN
        places, positions = rows(texts, query.device)
        found = texts_attention.attend_texts(query, *cache, places, positions, 0.25, window, cap)
        assert max(errors(found, [query, *cache], texts, window, cap)) < 1e-5, texts


@pytest.mark.usefixtures("few_parts")
@pytest.mark.parametrize("bug", ["neighbour", "late", "early"])
def test_a_wrong_place_or_length_is_seen(bug: str, where: torch.device) -> None:
    from cascli.kernels.attention import attend

    texts = RAGGED[0]
    given = [each.to(where) for each in states(texts, 4, 2, 16, torch.float32)]
    places, positions = rows(texts, where)
    if bug == "neighbour":
        places = (places + 1) % 4
    else:
        positions = (positions + (1 if bug == "late" else -1)).clamp_min(0)
    found = attend(*given, positions, places=places, scale=0.25)
    assert max(errors(found, given, texts, 0, 0.0)) > 1e-2


@pytest.mark.usefixtures("few_parts", "sound_products")
@pytest.mark.parametrize("window", [0, 70])
def test_a_token_has_the_same_bits_in_any_block(window: int, dtype: torch.dtype, where: torch.device) -> None:
    from cascli.kernels.attention import attend

    texts = RAGGED[0]
    query, *cache = (each.to(where) for each in states(texts, 16, 2, 64, dtype))
    places, positions = rows(texts, where)
    block = attend(query, *cache, positions, places=places, scale=0.125, window=window)
    for i in range(len(places)):
        one = slice(i, i + 1)
        alone = attend(query[:, :, one], *cache, positions[one], places=places[one], scale=0.125, window=window)
        assert torch.equal(alone[:, 0], block[:, i])
