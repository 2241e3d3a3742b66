"""T5 beyond its laws: when inputs are read and how they count, its head, its precisions, and what is rejected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

from cascli import Pair, compare, generate, generate_many, load_pair
from cascli.audit import audit, numerics
from cascli.config import load_config
from cascli.errors import CascliError, PairWarning, RunError
from cascli.jobs.profile import profiles
from cascli.models import choose_runner
from cascli.models.batch.reader import OneByOne
from cascli.models.cpu.int8_linear import Int8Linear
from cascli.models.cpu.packed_linear import PackedLinear
from cascli.models.encoder_decoder import EncoderDecoderRunner
from cascli.models.placement import choose_dtype
from cascli.models.tokenizer import byte_tokenizer
from cascli.strategies import parse
from cascli.sweeps.likelihood import log_likelihood
from tests.pairs import ENCODER_DECODERS, T5, UNEVEN, logits_along, model, pair
from tests.two_tokenizers import byte_level

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
STRATEGIES = [
    "draft",
    "target",
    "cascade:threshold=99",
    "token-cascade",
    "speculative:k=3",
    "speculative:k=3,verify=block",
    "speculative:k=4,stop=max-q",
    "speculative:k=3,draft=suffix",
    "speculative-cascade:rule=token-v3,k=3",
]


@pytest.fixture(scope="module")
def tiny() -> Pair:
    return load_pair("tiny-t5")


@pytest.fixture(scope="module")
def ids() -> Pair:
    """A pair of two v1.1 models over 40 tokens whose texts never end."""
    shape = ENCODER_DECODERS["t5_v1_1"] | UNEVEN
    return load_pair({"draft": model(1, 40, **shape), "target": model(2, 40, **shape)})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prompt_is_encoded_once_by_each_model_that_is_used(
    ids: Pair, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[str] = []
    hooks = []
    for role, loaded in ids.models.items():
        for name, module in loaded.model.named_modules():
            if name == "encoder" or name.endswith(("EncDecAttention.k", "EncDecAttention.v")):
                tell = f"{role} {name}"
                hooks.append(module.register_forward_hook(lambda *_, tell=tell: encoded.append(tell)))
    run = generate(ids, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=12, temperature=1.0)
    for hook in hooks:
        hook.remove()
    assert len(run.token_ids) == 12
    assert len(encoded) == len(set(encoded))
    asked = {each.split()[0] for each in encoded}
    needed = {"draft": {"draft"}, "target": {"target"}}.get(strategy, {"draft", "target"})
    assert asked == (needed - {"draft"} if "draft=suffix" in strategy else needed)
    assert len(encoded) == 5 * len(asked), "the encoder, and keys and values of both decoder layers"


def test_costs_by_hand(ids: Pair) -> None:
    run = generate(ids, prompt_ids=PROMPT, strategy="target", max_new_tokens=4)
    info, n = ids.target.info, len(PROMPT)
    attention, feed = 4 * 32 * 32, 3 * 32 * 64
    assert info.encoder is not None
    assert info.encoder.parameters == attention + feed + 2 * (2 * 32 * 32), "a layer, and cross keys and values of two"
    assert info.parameters == 2 * (attention + 2 * 32 * 32 + feed) + 40 * 32
    assert (info.weight_bytes, info.encoder.weight_bytes) == (4 * info.parameters, 4 * info.encoder.parameters)
    assert (info.attention_width, info.encoder.attention_width) == (2 * 32, 32)
    m = run.metrics
    assert (m.target_calls, m.target_tokens_read) == (4, n + 4)
    products = info.parameters * 4 + info.encoder.parameters * n
    looks = 2 * 32 * (4 * n + 1 + 2 + 3 + 4) + 32 * n * n
    assert m.total_flops == 2 * products + 4 * looks
    assert m.weight_bytes_read == 4 * info.weight_bytes + info.encoder.weight_bytes
    assert m.seconds.prefill > 0
    free = generate(ids, prompt_ids=PROMPT, strategy="speculative:k=2,draft=prompt-lookup", max_new_tokens=4)
    assert free.metrics.draft_tokens_read == 0, "an encoder that has read an earlier prompt costs nothing"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_end_at_the_end_of_text(strategy: str) -> None:
    """Id 1, `</s>`, is T5's own end of text."""
    both = {"draft": model(1, 12, **T5, eos_token_id=1), "target": model(2, 12, **T5, eos_token_id=1)}
    loaded, ends = load_pair(both), 0
    assert loaded.eos_ids == {1}
    for seed in range(12):
        run = generate(loaded, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, temperature=3.0, seed=seed)
        ends += run.finish_reason == "eos"
        assert (1 in run.token_ids) is (run.token_ids[-1] == 1) is (run.finish_reason == "eos")
    assert ends > 6


def test_the_encoder_reads_the_prompt_and_answers_are_decoder_tokens(tiny: Pair) -> None:
    run = generate(tiny, "hello", strategy="speculative:k=3", max_new_tokens=9)
    assert bytes(run.prompt_token_ids) == b"summarize: hello" and run.prompt == "hello"
    assert run.prompt_tokens == len("summarize: hello") and len(run.token_ids) == 9
    assert tiny.info.masked_rows == (320 - 257, 320 - 257)


@pytest.mark.parametrize("paddings", [(64, 80), (96, 64)])
def test_padded_rows_are_masked(paddings: tuple[int, int]) -> None:
    """Like T5's 28 rows beyond its 32,100 tokens."""
    loaded = load_pair({"draft": model(1, paddings[0], **T5), "target": model(2, paddings[1], **T5)})
    assert loaded.info.masked_rows == (paddings[0] - 64, paddings[1] - 64)
    for strategy in ("target", "speculative:k=3"):
        run = generate(loaded, prompt_ids=PROMPT, strategy=strategy, max_new_tokens=40, temperature=1.5)
        assert max(run.token_ids) < 64


def test_the_start_token_comes_from_the_config() -> None:
    shape = {**T5, "decoder_start_token_id": 5}
    loaded = load_pair({"target": model(2, 40, **shape)})
    runner = loaded.target.runner
    start = runner.begin(torch.tensor(PROMPT))
    assert start.tolist() == [5]
    assert torch.allclose(runner.forward(start, 1), logits_along(loaded.target.model, PROMPT, []), atol=1e-5)
    with pytest.raises(RunError, match="decoder_start_token_id: 40 is not a token"):
        load_pair({"target": model(2, 40, **{**T5, "decoder_start_token_id": 40})})


@pytest.mark.parametrize(
    "generation",
    [
        {"decoder_start_token_id": 9, "bos_token_id": 5},
        {"decoder_start_token_id": [9]},
        {"bos_token_id": 5, "pad_token_id": 3},
        {"bos_token_id": [5]},
    ],
)
def test_the_start_token_is_that_of_transformers_generate(tmp_path: Path, generation: dict[str, Any]) -> None:
    source = stored(tmp_path, own_head=False)
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).generate(torch.tensor([PROMPT]), max_new_tokens=1)
    start = load_pair({"target": source}).target.runner.begin(torch.tensor(PROMPT))
    assert start.tolist() == theirs[0, :1].tolist()


def test_settings_that_only_transformers_applies_are_named(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    config = {"target": stored(tmp_path, own_head=False)}
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 0, "repetition_penalty": 1.1, "top_p": 0.8, "min_length": 0})
    )
    load_pair(config)
    assert not [each for each in recwarn if issubclass(each.category, PairWarning)]
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"decoder_start_token_id": 0, "forced_bos_token_id": 33, "min_length": 5, "suppress_tokens": []})
    )
    with pytest.warns(PairWarning, match=r"generation_config.json sets forced_bos_token_id, min_length, which"):
        load_pair(config)


def stored(folder: Path, *, own_head: bool, more: dict[str, Any] | None = None) -> dict[str, Any]:
    """A T5 as in its checkpoints: v1.1 has its own head, v1.0 has none; `more` are additional tensors."""
    from safetensors.torch import load_file, save_file

    names = {"d_model", "d_kv", "d_ff", "num_heads", "num_layers", "num_decoder_layers", "decoder_start_token_id"}
    config = T5Config(
        vocab_size=300,
        tie_word_embeddings=not own_head,
        feed_forward_proj="gated-gelu" if own_head else "relu",
        **{name: T5[name] for name in names},
    )
    torch.manual_seed(0)
    made = T5ForConditionalGeneration(config)
    if own_head:
        made.lm_head.weight = nn.Parameter(torch.randn(300, 32))
    made.save_pretrained(folder)
    file = folder / "model.safetensors"
    held = load_file(file)
    assert ("lm_head.weight" in held) is own_head
    save_file(held | (more or {}), file, {"format": "pt"})
    byte_tokenizer().save_pretrained(folder)
    return {"source": {"path": str(folder)}}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("own_head", [False, True])
def test_stored_models_match_the_logits_of_transformers(own_head: bool, dtype: str, tmp_path: Path) -> None:
    """Above all their heads: the scaled embeddings, or a separate head."""
    source = stored(tmp_path / "t5", own_head=own_head)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").eval()
    assert theirs.config.scale_decoder_outputs is not own_head
    loaded = load_pair({"draft": source, "target": source}, dtype=dtype)
    for name, module in loaded.target.model.named_modules():  # exclude the effect of rounding on the weights
        if isinstance(module, Int8Linear):
            theirs.get_submodule(name.replace(".wo.layer", ".wo")).weight = nn.Parameter(module.weight)
    runner, wanted = loaded.target.runner, logits_along(theirs, PROMPT, [7, 8, 9])
    got = runner.forward(torch.cat([runner.begin(torch.tensor(PROMPT)), torch.tensor([7, 8, 9])]), 4)
    assert numerics.difference(got, wanted[:, :257]) < (1e-5 if dtype == "float32" else numerics.BOUNDS["int8"])
    inside = loaded.target.model
    assert inside.encoder.embed_tokens is inside.decoder.embed_tokens is inside.shared, "one table"


def test_a_tensor_that_t5_no_longer_has_is_ignored(tmp_path: Path) -> None:
    """Google's v1.0 files contain one."""
    old = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 2)}
    source = stored(tmp_path / "t5", own_head=False, more=old)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "t5").eval()
    runner = load_pair({"target": source}).target.runner
    got = runner.forward(runner.begin(torch.tensor(PROMPT)), 1)
    assert torch.allclose(got, logits_along(theirs, PROMPT, [])[:, :257], atol=1e-4)


@pytest.mark.parametrize("kind", [PackedLinear, Int8Linear])
def test_reading_a_layers_precision_does_not_unpack_its_weights(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """T5 reads the precision of one matrix per layer, at every step."""
    monkeypatch.setattr("cascli.models.size.LARGE", 1)
    loaded = load_pair(pair(300, **ENCODER_DECODERS["t5"]), dtype="int8" if kind is Int8Linear else "float32")

    def unpacked(self: nn.Module) -> None:
        raise AssertionError("unpacked")

    monkeypatch.setattr(kind, "weight", property(unpacked))
    assert any(type(module) is kind for module in loaded.target.model.modules())
    generate(loaded, "hello", strategy="speculative:k=2", max_new_tokens=5)


def test_half_precision_is_refused_where_it_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match=r"'t5' overflow in float16; use --dtype bfloat16 or float32"):
        load_pair("tiny-t5", dtype="float16")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    gpu = torch.device("cuda")
    assert choose_dtype("auto", gpu) == "float16"
    assert choose_dtype("auto", gpu, overflows="models of type 't5'") == "float32"
    assert load_pair("tiny-t5", dtype="bfloat16").target.dtype == "bfloat16"


def test_on_a_gpu_the_reason_for_recording_no_steps_is_given(ids: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_runner, "EncoderDecoderRunner", lambda *_: None)
    for graphs in (True, False):
        _, why = choose_runner.choose_runner(ids.target.model, 40, torch.device("cuda"), graphs=graphs)
        assert why is not None and "whose shape differs for every prompt" in why
    assert choose_runner.choose_runner(ids.target.model, 40, torch.device("cpu"), graphs=True)[1] is None


def test_other_encoder_decoders_are_refused() -> None:
    for kind in ("bart", "mt5", "pegasus"):
        with pytest.raises(RunError, match=f"'{kind}' is an encoder-decoder; the only ones cascli runs are t5 "):
            load_pair({"target": {"source": {"random": {"model_type": kind, "vocab_size": 8}}}})


def test_a_draft_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    texts = [*byte_level([chr(33 + i) for i in range(90)]).get_vocab()]
    byte_tokenizer().save_pretrained(tmp_path / "a")
    byte_level(list(reversed(texts))).save_pretrained(tmp_path / "b")
    sides = {}
    for role, folder in (("draft", "b"), ("target", "a")):
        sides[role] = {"source": {"random": T5 | {"vocab_size": 300}, "tokenizer": str(tmp_path / folder)}}
    with pytest.raises(CascliError, match="choose a draft with the target's own tokenizer"):
        load_pair(sides)


def test_rewinding_into_the_prompt_is_refused(ids: Pair) -> None:
    runner = ids.target.runner
    start = runner.begin(torch.tensor(PROMPT))
    runner.forward(torch.cat([start, torch.tensor([4, 5])]), 1)
    assert (runner.encoded, runner.length) == (8, 11)
    with pytest.raises(ValueError, match="inside the prompt"):
        runner.truncate(7)
    runner.truncate(8)
    assert torch.allclose(runner.forward(start, 1), logits_along(ids.target.model, PROMPT, []), atol=1e-5)
    runner.reset()
    assert runner.length == 0
    with pytest.raises(ValueError, match="start with a prompt"):
        runner.forward(start, 1)


def test_one_model_can_decode_two_texts_concurrently(ids: Pair) -> None:
    first, second = ids.target.runner, ids.target.runner.fresh()
    starts = [each.begin(torch.tensor(prompt)) for each, prompt in ((first, PROMPT), (second, [9, 9]))]
    for each, start, prompt in zip((first, second), starts, (PROMPT, [9, 9]), strict=True):
        assert torch.allclose(each.forward(start, 1), logits_along(ids.target.model, prompt, []), atol=1e-5)


def test_batches_are_read_one_by_one_with_a_warning(tiny: Pair) -> None:
    assert isinstance(choose_runner.choose_reader(tiny.target.runner, 2), OneByOne)
    prompts, how = ["a", "bc", "def"], {"temperature": 1.0, "max_new_tokens": 20}
    with pytest.warns(
        PairWarning,
        match="the target model reads the texts of a batch one by one: each attends to its own encoder states",
    ):
        many = generate_many(tiny, prompts, strategy="speculative:k=2", batch_size=2, **how)
    found = compare(tiny, prompts, strategies=["speculative:k=2"], **how)
    assert [run.token_ids for run in many] == [run.token_ids for run in found.runs]
    assert [run.metrics.total_flops for run in many] == [run.metrics.total_flops for run in found.runs]


def test_steps_are_timed_on_texts_the_encoder_has_read(ids: Pair) -> None:
    seen: list[tuple[int, int]] = []
    runner = ids.target.runner
    assert isinstance(runner, EncoderDecoderRunner)
    right = runner.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            runner, "forward", lambda ids, rows: (seen.append((runner.encoded, runner.length)), right(ids, rows))[1]
        )
        found = profiles(ids, [5, 20], blocks=(1, 3), repeats=1)
    assert [each.context for each in found] == [5, 20]
    assert set(seen) == {(5, 5), (20, 20)}


def test_likelihood_of_an_answer(ids: Pair) -> None:
    answer = [3, 9, 4]
    logs = logits_along(ids.target.model, PROMPT, answer).log_softmax(-1)
    wanted = sum(float(logs[i, token]) for i, token in enumerate(answer)) / 3
    assert log_likelihood(ids.target, PROMPT, answer) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.slow
def test_verify_passes(tiny: Pair) -> None:
    strategies = [parse(text) for text in ("speculative:k=2", "speculative-cascade:rule=opt,k=2")]
    found = audit(tiny, strategies, quick=True, config=load_config("tiny-t5"))
    assert found.passed, [check for check in found.checks if check.status == "fail"]
    kinds = {check.kind for check in found.checks}
    assert {"cache", "block", "draw", "round", "joint law", "parity"} <= kinds
