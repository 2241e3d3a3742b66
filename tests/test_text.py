from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from cascli.decoding.answer import Answer
from cascli.decoding.detokenizer import Speller, StopStrings, Stream
from cascli.models.tokenizer import byte_tokenizer
from cascli.trace import Emitted, Round
from tests.two_tokenizers import SPACE, pieces

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXT = "naïve 🙂 日本語, plain\nlines — done"


def test_byte_tokenizer_round_trip() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == list(TEXT.encode())
    assert Speller(tokenizer).text(ids) == TEXT
    assert len(tokenizer) == 257
    assert tokenizer.eos_token_id == 256


def test_a_character_is_emitted_once_its_bytes_are_complete() -> None:
    speller = Speller(byte_tokenizer())
    stream = Stream(speller)
    pieces = [stream.push(byte) for byte in TEXT.encode()]
    assert "".join(pieces) + stream.flush() == TEXT
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)


def test_an_unfinished_character_is_emitted_at_the_end() -> None:
    stream = Stream(Speller(byte_tokenizer()))
    said = "".join(stream.push(byte) for byte in "ab🙂".encode()[:-1])
    assert said == "ab"
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def test_stop_strings_hold_back_what_might_begin_them() -> None:
    stops = StopStrings(["END", "\n\n"])
    assert stops.push("one E") == ("one", False)
    assert stops.push("N ") == (" E", False) or stops.push("") == ("", False)
    said, stopped = stops.push("xEND more")
    assert stopped
    assert said.endswith("x")


def test_earliest_stop_wins() -> None:
    assert StopStrings(["b", "ab"]).push("xab") == ("x", True)
    assert StopStrings([]).push("xab") == ("xab", False)


def add(answer: Answer, text: str) -> list[str]:
    return add_ids(answer, text.encode())


def add_ids(answer: Answer, ids: Iterable[int]) -> list[str]:
    return answer.add(Round(emitted=[Emitted(id=token, text="", event="target") for token in ids]))[1]


def test_answer_ends_at_a_stop_string_inside_a_block() -> None:
    answer = Answer(Speller(byte_tokenizer()), {256}, ["STOP"], limit=99)
    said = "".join(add(answer, "go ST") + add(answer, "OP on"))
    assert (said, answer.text, answer.finish_reason) == ("go ", "go ", "stop")
    assert bytes(answer.token_ids) == b"go STOP"


def test_answer_ends_at_the_limit_and_emits_the_text_held_back() -> None:
    answer = Answer(Speller(byte_tokenizer()), {256}, ["STOP"], limit=5)
    assert "".join(add(answer, "go STO")) == "go ST"
    assert answer.finish_reason == "length"


def test_streamed_pieces_add_up_to_the_final_text() -> None:
    """Random bytes, whole and broken characters: the pieces add up to the text, and stop strings cut both alike."""
    rng, speller = random.Random(0), Speller(byte_tokenizer())
    parts = ["a", " ", "\n", "é", "語", "🙂", b"\x80", b"\xf0", b"\xf0\x9f", b"\xe6\x97", b"\xff", b"\xc3"]
    whole = [part if isinstance(part, bytes) else part.encode() for part in parts]
    for _ in range(3000):
        broken = rng.choice((1, 4, 20))
        data = b"".join(rng.choices(whole, weights=[4] * 6 + [broken] * 6, k=rng.randint(1, 40)))
        answer = Answer(speller, {256}, rng.choice(([], ["\n"], ["a ", "é"])), limit=len(data))
        said = ""
        for byte in data:
            if answer.finish_reason is None:
                step = Round(emitted=[Emitted(id=byte, text="", event="target")])
                said += "".join(answer.add(step)[1])
        assert said == answer.text, data


@pytest.mark.parametrize("prefix", [True, False])
def test_characters_of_byte_tokens_are_streamed_whole(prefix: bool) -> None:
    """Of a run of byte tokens, a sentencepiece vocabulary decodes all or none, so no window may begin inside one."""
    tokenizer = pieces([*BYTE_PIECES, "a", "b", SPACE], ["<unk>"], prefix=prefix)
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(["a", "b ", "\n", "é", "語", "🙂"], k=rng.randint(1, 30)))
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        stop = rng.choice([[], ["語🙂"], ["b \n"]])
        answer = Answer(Speller(tokenizer), set(), stop, limit=len(ids))
        said = ""
        for token in ids:
            if answer.finish_reason is None:
                said += "".join(add_ids(answer, [token]))
        assert said == answer.text == (text.partition(stop[0])[0] if stop else text)


def test_a_broken_byte_does_not_change_what_was_streamed() -> None:
    """The whole run of byte tokens is then decoded as broken; the answer keeps its complete characters."""
    speller = Speller(pieces([*BYTE_PIECES, "a"], ["<unk>"]))
    for start in ("", "a", "aé語" * 9):
        for end in (b"\xe6\x97", b"\x80a"):
            data = (start + "語🙂").encode() + end
            answer = Answer(speller, set(), [], limit=len(data))
            said = "".join("".join(add_ids(answer, [byte])) for byte in data)
            assert said == answer.text and said.startswith(start + "語🙂\N{REPLACEMENT CHARACTER}")
            assert len(said) == len(start) + 4


def test_an_interrupted_answer_has_what_was_held_back() -> None:
    answer = Answer(Speller(byte_tokenizer()), {256}, ["END"], limit=99)
    assert "".join(add(answer, "ab EN")) == "ab "
    answer.finish_reason = "interrupted"
    assert answer.text == "ab EN"


def test_a_character_after_many_broken_bytes_is_not_lost() -> None:
    for count in range(1, 40):
        stream = Stream(Speller(byte_tokenizer()))
        data = b"\x80" * count + "é🙂".encode() + b"ab"
        assert "".join(stream.push(byte) for byte in data) + stream.flush() == data.decode(errors="replace")


@pytest.mark.parametrize("listed", [True, False])
def test_markup_can_be_a_stop_string(listed: bool) -> None:
    """It does not appear in the text, so its token is checked, even if only tokenizer.json says that it is special."""
    tokenizer = byte_tokenizer()
    if listed:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|stop|>"]})
    else:
        tokenizer.backend_tokenizer.add_special_tokens(["<|stop|>"])
    assert ("<|stop|>" in tokenizer.all_special_tokens) == listed
    tokenizer.pad_token = "<|not in the vocabulary|>"
    stop = tokenizer.convert_tokens_to_ids("<|stop|>")
    answer = Answer(Speller(tokenizer), set(), ["<|stop|>", "x"], limit=99)
    _, pieces = answer.add(Round(emitted=[Emitted(id=i, text="", event="target") for i in (104, 0xC3, stop, 105)]))
    assert answer.finish_reason == "stop" and answer.token_ids == [104, 0xC3, stop]
    assert "".join(pieces) == answer.text == "h\N{REPLACEMENT CHARACTER}"


def test_a_stop_string_that_the_last_token_completes_ends_the_text() -> None:
    answer = Answer(Speller(byte_tokenizer()), {256}, ["\n\N{REPLACEMENT CHARACTER}"], limit=3)
    step = Round(emitted=[Emitted(id=byte, text="", event="target") for byte in b"a\n\xf0"])
    said = "".join(answer.add(step)[1])
    assert (said, answer.text, answer.finish_reason) == ("a", "a", "stop")


def streamed(speller: Speller, ids: Iterable[int]) -> str:
    stream = Stream(speller)
    return "".join([stream.push(id) for id in ids]) + stream.flush()


def test_what_was_shown_is_neither_repeated_nor_lost_after_broken_bytes() -> None:
    """A run of broken characters is settled before it ends; of a run of byte tokens, one breaks all."""
    whole = "a\ufffd\ufffd\ufffda🙂"
    assert streamed(Speller(byte_tokenizer()), [*whole.encode()]) == whole
    speller = Speller(pieces([*BYTE_PIECES, "a"], ["<unk>"]))
    shown = streamed(speller, [0x80, *"🙂й語й".encode(), 256])
    assert shown.endswith("a") and shown.count("a") == 1


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_letters_between_broken_bytes_are_shown_once(kind: str) -> None:
    """Whatever bytes surround them, and however the tokenizer decodes a run of bytes."""
    speller = Speller(byte_tokenizer() if kind == "bytes" else pieces([*BYTE_PIECES, "a"], ["<unk>"]))
    letter, rng = (ord("a") if kind == "bytes" else 256), random.Random(0)
    parts = [[0x80], [0xE6, 0x97], [*"語".encode()], [*"🙂".encode()], [*"\ufffd".encode()], [letter]]
    for _ in range(3000):
        ids = [id for part in rng.choices(parts, weights=[2, 1, 2, 2, 1, 2], k=rng.randint(1, 20)) for id in part]
        assert streamed(speller, ids).count("a") == ids.count(letter)
