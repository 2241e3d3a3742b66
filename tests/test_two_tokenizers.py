"""Two tokenizers: what tokens stand for, which are shared, how texts and special tokens are read, what is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cascli import compare, generate, generate_many, load_pair
from cascli.audit import numerics, tokens
from cascli.errors import ConfigError, RunError
from cascli.jobs.generate import converse, settings_of
from cascli.models import translation
from cascli.models.choose_runner import choose_runner
from cascli.models.contents import Contents
from cascli.models.tokenizer import byte_alphabet, byte_tokenizer
from cascli.models.translated_runner import TranslatedRunner
from cascli.models.translation import Translation, Vocabulary
from cascli.prompts import Prompt
from cascli.strategies import parse
from tests.tape import TapeCapture
from tests.two_tokenizers import SPACE, byte_level, letters, pair_of, pieces

BYTES = list(byte_alphabet().values())
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
WORDS = [letters(word) for word in ("th", "he", "the", " t", " the", "in", "ing", "é", " é")]
OURS = [*"abcdefghijklmnopqrstuvwxyz", SPACE, "th", "the", f"{SPACE}t", f"{SPACE}the", "in", "é"]
TEXTS = ["the thing", " the  thing\n", "thé été", "日本語 🙂", "<s> the", "", "\n\nthe"]


def bytewise(special: tuple[str, ...] = ("<|end|>",), **roles: str) -> Any:
    return byte_level([*BYTES, *WORDS], special, **{"eos_token": special[0], **roles})


def piecewise(special: tuple[str, ...] = ("<unk>", "<s>", "</s>"), *, prefix: bool = True, **roles: str) -> Any:
    given = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", **roles}
    return pieces([*BYTE_PIECES, *OURS], special, prefix=prefix, **{k: v for k, v in given.items() if v in special})


def side(tokenizer: Any, ends: tuple[int, ...] = ()) -> Vocabulary:
    return Vocabulary(Contents(tokenizer), ends)


def id_of(tokenizer: Any, name: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(name))


# ---------------------------------------------------------------- what tokens stand for


@pytest.mark.parametrize(
    ("tokenizer", "name", "data"),
    [
        (bytewise(), letters(" the"), b" the"),
        (piecewise(), f"{SPACE}the", b" the"),
        (bytewise(), letters("é"), "é".encode()),
        (piecewise(), "é", "é".encode()),
        (bytewise(), byte_alphabet()[0xE6], b"\xe6"),
        (piecewise(), "<0xE6>", b"\xe6"),
        (bytewise(), "<|end|>", None),
        (piecewise(), "</s>", None),
    ],
)
def test_tokens_of_both_kinds_are_bytes(tokenizer: Any, name: str, data: bytes | None) -> None:
    contents = Contents(tokenizer)
    token = id_of(tokenizer, name)
    assert contents.bytes_of(token) == data
    assert data is None or token in contents.tokens[data]


def test_of_tokens_with_equal_bytes_the_one_used_in_texts_comes_first() -> None:
    tokenizer = piecewise()
    assert Contents(tokenizer).tokens[b"a"] == [id_of(tokenizer, "a"), id_of(tokenizer, "<0x61>")]


def test_an_unsupported_kind_of_tokenizer_is_refused() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(vocab={"a": 0, "##b": 1, "[UNK]": 2}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="a tokenizer that decodes by WordPiece cannot be compared"):
        Contents(PreTrainedTokenizerFast(tokenizer_object=core))


@pytest.mark.parametrize(
    "tokenizer", [bytewise(), piecewise(), piecewise(prefix=False)], ids=["bytes", "pieces", "bare"]
)
@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_spelled_exactly(tokenizer: Any, text: str) -> None:
    """No space is put in front, and text spelled like a special token does not become one."""
    contents = Contents(tokenizer)
    assert contents.spelling(contents.encode(text.encode())) == text.encode()


def test_the_tokenizers_own_tokens_are_kept_where_they_spell_the_text() -> None:
    """The first word is encoded as in the middle of a text: without `▁`, a space that nobody wrote."""
    tokenizer = piecewise()
    contents = Contents(tokenizer)
    names = [contents.name(token) for token in contents.encode(b"the the")]
    assert names == ["the", f"{SPACE}the"]
    assert [contents.name(token) for token in contents.encode("é".encode()[:1])] == ["<0xC3>"]


def test_a_normalizer_that_changes_a_text_is_bypassed() -> None:
    """Qwen's normalizer composes letters and accents, which a target without it writes separately."""
    from tokenizers import normalizers

    tokenizer = bytewise()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    contents, apart = Contents(tokenizer), "e\u0301"
    assert contents.spelling(contents.encode(apart.encode())) == apart.encode()


def test_bytes_without_a_token_become_the_unknown_one_or_nothing() -> None:
    assert Contents(byte_level(["a"])).encode(b"ab") == [0]
    known = byte_level(["a"], ("<unk>",), unk_token="<unk>")
    assert Contents(known).encode(b"aba") == [0, 1, 0]


# ---------------------------------------------------------------- shared tokens


def test_every_token_of_the_target_is_read_as_its_own_bytes() -> None:
    """It is read as one token if both have it, otherwise as several; in both directions."""
    sides = side(bytewise()), side(piecewise())
    for draft, target in (sides, sides[::-1]):
        made = Translation(draft, target)
        for token in range(target.size):
            data = target.contents.bytes_of(token)
            if data is not None:
                read = made.read(token)
                assert draft.contents.spelling(read) == data
                assert (len(read) == 1) == (data in draft.contents.tokens)
        common = set(draft.contents.tokens) & set(target.contents.tokens)
        assert made.shared == len(common) + 1  # and the end-of-text token


def test_tokens_without_a_row_in_the_draft_are_neither_read_nor_drafted() -> None:
    draft, target = Vocabulary(Contents(bytewise(), 258), ()), side(piecewise())
    made = Translation(draft, target)
    assert (draft.size, draft.special, draft.end) == (258, set(), None)
    for token in range(target.size):
        data = target.contents.bytes_of(token)
        assert max(made.read(token)) < 258 and (data is None or draft.contents.spelling(made.read(token)) == data)
    assert made.logits(torch.zeros(1, 258)).isfinite().sum() == made.shared < side(bytewise()).size


def test_the_draft_is_limited_to_shared_tokens_and_merges_duplicates() -> None:
    draft, target = side(piecewise()), side(bytewise())
    own = torch.randn(3, draft.size, dtype=torch.float64)
    said, probs = Translation(draft, target).logits(own).softmax(-1), own.softmax(-1)
    mass = torch.zeros(3, target.size, dtype=torch.float64)
    for data, ours in draft.contents.tokens.items():
        if data in target.contents.tokens:
            mass[:, target.contents.tokens[data][0]] += probs[:, ours].sum(-1)
    mass[:, target.end] += probs[:, draft.end]
    assert torch.allclose(said, mass / mass.sum(-1, keepdim=True), atol=1e-12)
    assert bool((said[:, target.contents.tokens[b" \xc3\xa9"]] == 0).all())  # the draft does not have it


def test_of_two_equivalent_target_tokens_the_usual_one_is_drafted() -> None:
    target = side(piecewise())
    own = torch.zeros(1, side(bytewise()).size)
    said = Translation(side(bytewise()), target).logits(own)
    a, byte = target.contents.tokens[b"a"]
    assert said[0, a] == 0 and said[0, byte] == -torch.inf


def test_special_tokens_are_matched_by_role() -> None:
    """End, beginning and same-named tokens correspond; text that looks like a special token stays text."""
    draft = side(piecewise(("<unk>", "<s>", "</s>", "<|user|>")))
    target = side(bytewise(("<|end|>", "<|begin|>", "<|stop|>", "<|user|>", "<|tool|>"), bos_token="<|begin|>"), (267,))
    assert target.contents.name(267) == "<|stop|>"
    made = Translation(draft, target)
    theirs, ours = target.contents.tokenizer, draft.contents.tokenizer

    def read(name: str) -> list[str]:
        return [draft.contents.name(token) for token in made.read(id_of(theirs, name))]

    assert read("<|end|>") == read("<|stop|>") == ["</s>"]
    assert read("<|begin|>") == ["<s>"]
    assert read("<|user|>") == ["<|user|>"]
    assert draft.contents.spelling(made.read(id_of(theirs, "<|tool|>"))) == b"<|tool|>"
    said = made.logits(torch.zeros(1, draft.size))[0]
    assert said[target.end] == 0 and said[id_of(theirs, "<|user|>")] == 0
    assert said[id_of(theirs, "<|begin|>")] == -torch.inf
    assert id_of(ours, "</s>") not in made.prompt(theirs("</s>", add_special_tokens=False)["input_ids"])


def test_prompts_are_encoded_whole_and_begin_as_the_draft_expects() -> None:
    theirs = bytewise(("<|end|>", "<|begin|>", "<|user|>"), bos_token="<|begin|>")
    target = side(theirs)
    ids = [id_of(theirs, "<|begin|>"), id_of(theirs, "<|user|>"), *(id_of(theirs, letter) for letter in "the")]
    bare = Translation(side(piecewise()), target)
    names = [bare.draft.contents.name(token) for token in bare.prompt(ids)]
    assert (names[0], names[-1]) == ("<s>", "the")
    beginning = piecewise()
    beginning.backend_tokenizer.post_processor = _begins_with(beginning, "<s>")
    made = Translation(side(beginning), target)
    assert made.prompt(ids)[0] == made.prompt(ids[2:])[0] == id_of(beginning, "<s>")
    assert made.prompt(ids).count(id_of(beginning, "<s>")) == 1
    without = Translation(side(piecewise(("</s>",))), target)
    assert without.draft.contents.spelling(without.prompt(ids)) == b"<|user|>the"  # no beginning, and none spelled out


def _begins_with(tokenizer: Any, name: str) -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{name} $A", special_tokens=[(name, id_of(tokenizer, name))])


def test_too_few_shared_tokens_are_refused_with_their_count() -> None:
    with pytest.raises(
        ConfigError, match=r"differ: they share 1 tokens, of the draft's 21 and the target's 257;\nthis"
    ):
        Translation(
            side(byte_level([f"{letter}日" for letter in BYTES[:20]], ("<e>",), eos_token="<e>")),
            side(byte_tokenizer()),
        )


def test_a_cut_head_that_shares_too_few_tokens_is_refused(tmp_path: Path) -> None:
    """As are tokenizers that do: no token, or hardly one, could be drafted."""
    words = [f"{letter}日" for letter in BYTES[:20]]  # which a tokenizer of bytes does not have
    draft, file = byte_level([*BYTES, *words], ("<e>",), eos_token="<e>"), tmp_path / "kept.json"
    loaded = load_pair(pair_of(tmp_path, draft, byte_tokenizer()))
    first, theirs = loaded.translation.draft, loaded.translation
    alone = [i for i in range(first.size) if not theirs.shared_among(torch.tensor([i]))]
    file.write_text(json.dumps(alone))
    config = pair_of(tmp_path, draft, byte_tokenizer())
    config["draft"]["vocab"] = str(file)
    with pytest.raises(ConfigError, match=r"draft\.vocab: of the 21 tokens it keeps, the target has 1;"):
        load_pair(config)


def test_the_content_map_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cache" / "x.safetensors"
    sides = side(bytewise()), side(piecewise())
    own = torch.randn(2, sides[0].size)
    first = Translation(*sides, file).logits(own)
    with monkeypatch.context() as patch:
        patch.setattr(translation, "_pairs", lambda *_: pytest.fail("made again"))
        assert torch.equal(Translation(*sides, file).logits(own), first)
    file.write_bytes(b"damaged")
    assert torch.equal(Translation(*sides, file).logits(own), first)


# ---------------------------------------------------------------- pairs


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pair_of(tmp_path_factory.mktemp("two"), piecewise(), bytewise())


GREEDY: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 24}


@pytest.mark.parametrize(
    "strategy", ["speculative:k=3", "speculative:k=4,verify=block", "speculative-cascade:rule=mentored,alpha=0,k=2"]
)
def test_greedy_answers_are_the_targets(pair: dict[str, Any], strategy: str) -> None:
    loaded = load_pair(pair)
    runs = [generate(loaded, "the thing é 日", strategy=each, **GREEDY) for each in ("target", strategy)]
    assert runs[0].token_ids == runs[1].token_ids and runs[1].metrics.lossless
    assert runs[0].metrics.shared_mass is None and 0 < runs[1].metrics.shared_mass < 1


def test_every_strategy_runs_and_the_trace_records_the_shared_tokens(pair: dict[str, Any]) -> None:
    loaded = load_pair(pair)
    found = compare(loaded, "the thing", max_new_tokens=8, temperature=1.0, schedule="fair")
    assert len(found.summary) == 7
    said = found.runs[0].pair
    assert said.tokenizer_size == loaded.vocab == len(bytewise())
    assert (said.draft_tokenizer_size, said.masked_rows) == (len(piecewise()), (0, 0))
    assert said.shared_tokens == loaded.translation.shared
    masses = [row.shared_mass for row in found.summary]
    assert masses[0] is None and all(0 < mass <= 1 for mass in masses[1:])


def test_batched_answers_equal_those_of_each_prompt_alone(pair: dict[str, Any]) -> None:
    loaded = load_pair(pair)
    asked = [Prompt((text,), text) for text in ("the thing", "é", "the", "in the thing 日", "thé")]
    together = generate_many(loaded, asked, strategy="speculative:k=3", batch_size=3, max_new_tokens=9)
    settings = settings_of(loaded, max_new_tokens=9)
    alone = [run for each in asked for run in converse(loaded, parse("speculative:k=3"), each, settings)]
    for one, other in zip(together, alone, strict=True):
        assert one.token_ids == other.token_ids
        assert one.metrics.shared_mass == other.metrics.shared_mass
        assert one.metrics.draft_tokens_read == other.metrics.draft_tokens_read


def test_the_audit_reads_the_draft_in_its_own_tokens(pair: dict[str, Any]) -> None:
    assert [check.status for check in numerics.numerics(load_pair(pair), 4)] == ["pass"] * 4


def test_the_audit_detects_a_text_read_as_another(pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_pair(pair)

    def found() -> list[str]:
        checks = list(tokens.tokens(loaded))
        assert len(checks) == tokens.num_checks(loaded)
        return [check.status for check in checks if check.subject == "two tokenizers"]

    assert found() == ["pass"]
    monkeypatch.setattr(Contents, "encode", lambda self, data: [0] * len(data))
    loaded.translation._read.clear()
    assert found() == ["fail"]


def test_a_cut_head_and_another_tokenizer(pair: dict[str, Any]) -> None:
    """The cut uses ids of the draft's own vocabulary, and keeps its special tokens."""
    loaded = load_pair(pair | {"draft": pair["draft"] | {"vocab": 257}})
    draft = loaded.translation.draft
    assert loaded.draft.model.lm_head.ids.tolist() == [*range(257), *sorted(draft.special)]
    runs = [generate(loaded, "the thing", strategy=each, **GREEDY) for each in ("target", "speculative:k=3")]
    assert runs[0].token_ids == runs[1].token_ids
    drafted = {token.id for step in runs[1].rounds for token in step.drafted}
    bytes_of = loaded.translation.target.contents.bytes_of
    assert drafted
    assert all(min(draft.contents.tokens[bytes_of(token)]) < 257 for token in drafted if bytes_of(token) is not None)
    assert len(loaded.info.limits) == 2
    own = torch.full((1, draft.size), -torch.inf)
    own[0, loaded.draft.model.lm_head.ids] = 0.0
    sayable = int(loaded.translation.logits(own).isfinite().sum())
    assert loaded.info.shared_tokens == sayable < loaded.translation.shared


def test_a_full_context_of_the_draft_is_reported(tmp_path: Path) -> None:
    """The context is counted in the draft's tokens, of which a text has more; the target's still has room."""
    config = pair_of(tmp_path, byte_tokenizer(), bytewise())
    config["draft"]["source"]["random"] = config["draft"]["source"]["random"] | {"max_position_embeddings": 40}
    loaded = load_pair(config)
    assert loaded.context == 256
    assert generate(loaded, "the" * 10, strategy="target", **GREEDY).token_ids
    for strategy, text in (("speculative", "the" * 14), ("draft", "the" * 11)):
        with pytest.raises(RunError, match="the draft model's context of 40 of its own tokens is full"):
            generate(loaded, text, strategy=strategy, **GREEDY)


@pytest.mark.parametrize("rest", ["k=3", "k=3,stop=max-q,least_q=0.01"])
def test_an_answer_that_outgrows_the_drafts_context_goes_on_without_drafts(tmp_path: Path, rest: str) -> None:
    config = pair_of(tmp_path, byte_tokenizer(), bytewise())
    config["draft"]["source"]["random"] = config["draft"]["source"]["random"] | {"max_position_embeddings": 40}
    loaded = load_pair(config)
    for rule in ("speculative:", "speculative-cascade:rule=token-v3,alpha=0.3,"):
        runs = generate_many(loaded, ["the" * 11, "the"], strategy=rule + rest, batch_size=2, **GREEDY)
        drafted = [len(step.drafted) for step in runs[0].rounds]
        assert len(runs[0].token_ids) == 24 and drafted[-4:] == [0] * 4 and sum(drafted[:4]) > 0
        alone = generate(loaded, "the" * 11, strategy=rule + rest, **GREEDY)
        assert alone.token_ids == runs[0].token_ids
        if rule == "speculative:":
            assert alone.token_ids == generate(loaded, "the" * 11, strategy="target", **GREEDY).token_ids


def test_a_prompt_of_one_token_and_one_the_draft_reads_as_several(tmp_path: Path) -> None:
    loaded = load_pair(pair_of(tmp_path, byte_tokenizer(), bytewise()))
    the = id_of(loaded.tokenizer, letters(" the"))
    runs = [generate(loaded, prompt_ids=[the], strategy=each, **GREEDY) for each in ("target", "speculative:k=3")]
    assert runs[0].token_ids == runs[1].token_ids
    assert loaded.translation.read(the) == tuple(b" the")


@pytest.mark.parametrize("vocab", [None, 280])
def test_recorded_steps_draft_the_same(pair: dict[str, Any], vocab: int | None) -> None:
    """With a tape in place of CUDA graphs, with and without a cut head; recordings are made before the clock starts."""
    config = pair | {"draft": pair["draft"] | {"vocab": vocab}}
    plain, taped = load_pair(config, dtype="float32"), load_pair(config, dtype="float32")
    for role, model in taped.models.items():
        size = taped.translation.draft.size if role == "draft" else taped.vocab
        runner, why = choose_runner(model.model, size, model.device, graphs=True, capture=TapeCapture())
        assert why is None
        model.runner = TranslatedRunner(runner, taped.translation, None) if role == "draft" else runner
    for strategy in ("draft", "speculative:k=3", "speculative-cascade:rule=opt,alpha=0.3,k=2"):
        for temperature in (0.0, 1.0):
            ask = {"prompt": "the thing é", "strategy": strategy, "temperature": temperature, "max_new_tokens": 20}
            ours, theirs = generate(taped, **ask), generate(plain, **ask)
            assert ours.token_ids == theirs.token_ids
            assert ours.metrics.shared_mass == pytest.approx(theirs.metrics.shared_mass, abs=1e-5)
    assert taped.draft.runner.graphs == 4
