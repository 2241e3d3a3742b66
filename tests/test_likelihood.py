from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cascli.models.cpu import row_attention
from cascli.models.pair import Pair
from cascli.sweeps import likelihood
from cascli.sweeps.likelihood import log_likelihood
from tests.tape import TapeCapture


@pytest.mark.parametrize("length", [1, 5, 9])
def test_the_likelihood_equals_that_of_one_forward_pass(
    text_pair: Pair, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(likelihood, "CHUNK", 4)
    prompt, answer = [3, 1, 2], [(5 * i + 1) % text_pair.vocab for i in range(length)]
    text = torch.tensor([prompt + answer])
    with torch.inference_mode():
        logits = text_pair.target.model(text).logits[0, 2:-1, : text_pair.vocab]
    wanted = torch.log_softmax(logits, -1).gather(-1, torch.tensor(answer).unsqueeze(-1)).mean()
    assert log_likelihood(text_pair.target, prompt, answer) == pytest.approx(float(wanted), abs=1e-4)


def test_a_recording_runner_gives_the_same_and_records_nothing(text_pair: Pair) -> None:
    from cascli.models.choose_runner import choose_runner

    target = text_pair.target
    wanted = log_likelihood(target, [3] * 9, [4, 5, 6, 7, 8])
    runner, _ = choose_runner(target.model, text_pair.vocab, target.device, graphs=True, capture=TapeCapture())
    taped = replace(target, runner=runner)
    try:
        assert log_likelihood(taped, [3] * 9, [4, 5, 6, 7, 8]) == pytest.approx(wanted, abs=1e-4)
    finally:
        target.model.set_attn_implementation(row_attention.NAME)
    assert runner.graphs == 0


def test_a_prompt_of_one_token_and_an_empty_answer(text_pair: Pair) -> None:
    assert log_likelihood(text_pair.target, [3], [4]) < 0
    assert log_likelihood(text_pair.target, [3], []) is None


def test_without_a_prompt_nothing_predicts_the_first_token(text_pair: Pair) -> None:
    with pytest.raises(ValueError, match="without a prompt"):
        log_likelihood(text_pair.target, [], [4, 5])


def test_the_targets_own_answer_is_likelier_than_another(text_pair: Pair) -> None:
    from cascli import generate

    own = generate(text_pair, prompt_ids=[3, 1, 2], strategy="target", temperature=0.0, max_new_tokens=8).token_ids
    other = [(token + 7) % text_pair.vocab for token in own]
    assert log_likelihood(text_pair.target, [3, 1, 2], own) > log_likelihood(text_pair.target, [3, 1, 2], other)
