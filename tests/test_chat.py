"""cascli chat: one loaded pair, one prompt per line, and commands in between."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner, Result

from cascli import Pair, Run, load_pair
from cascli.chat import Conversation, encode
from cascli.cli.app import _interrupt, app
from cascli.cli.chat import COMMANDS
from cascli.cli.errors import Terminated
from cascli.cli.lines import history, next_line
from cascli.errors import RunError, UsageError
from cascli.jobs.chat import Chat
from cascli.jobs.generate import converse
from cascli.prompts import Prompt
from cascli.render.stream import AnswerStream
from cascli.render.summary import one_line
from cascli.settings import Resolved
from cascli.strategies import parse
from tests.pairs import model, pair
from tests.two_tokenizers import byte_level

SETTINGS = Resolved(max_new_tokens=8, temperature=0.7)


@pytest.fixture
def stored(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> str:
    clean_env.setenv("CASCLI_HOME", str(tmp_path / "home"))
    file = tmp_path / "pair.yaml"
    file.write_text(json.dumps(pair(300)))
    return str(file)


def talk(config: str, *said: str, flags: tuple[str, ...] = ()) -> Result:
    arguments = ["chat", "-c", config, "--max-new-tokens", "6", *flags]
    return CliRunner().invoke(app, arguments, input="".join(f"{line}\n" for line in said))


def test_a_piped_conversation_matches_generate_with_the_same_turns(stored: str, tmp_path: Path) -> None:
    turns = tmp_path / "turns.jsonl"
    turns.write_text(json.dumps({"id": "", "turns": ["hi", "and then?"]}))
    asked = ["generate", "-c", stored, "--prompts", str(turns), "--max-new-tokens", "6", "--format", "jsonl"]
    runs = [Run.from_json(line) for line in CliRunner().invoke(app, asked).stdout.splitlines()]
    found = talk(stored, "hi", "and then?", "/quit", "never asked")
    assert found.exit_code == 0
    assert found.stdout == "".join(run.text + "\n" for run in runs) and len(runs) == 2
    assert found.stderr.count("TV") == 2 and "\x1b" not in found.output


def test_end_of_input_ends_the_chat(stored: str) -> None:
    assert talk(stored).exit_code == 0
    assert talk(stored, "", "   ").stdout == ""


def test_the_numbers_after_an_answer_fit_one_line(text_pair: Pair) -> None:
    run = Chat(text_pair, parse("speculative"), SETTINGS).ask("hi", lambda step: None)
    assert one_line(run).startswith("8 tokens (limit) · ")
    assert "accepted" in one_line(run) and len(one_line(run)) < 80


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("/strategy", "speculative-cascade:rule=token-v3,alpha=0.3,k=4"),
        ("/strategy speculative", "speculative:k=4"),
        ("/strategy speculativ", "unknown strategy 'speculativ'; did you mean 'speculative'?"),
        ("/strategy speculative:k=99", "less than or equal to 64"),
        ("/alpha 0.5", "speculative-cascade:rule=token-v3,alpha=0.5,k=4"),
        ("/alpha much", "alpha: Input should be a valid number"),
        ("/k 2", "speculative-cascade:rule=token-v3,alpha=0.3,k=2"),
        ("/k auto", "alpha=0.3,stop=rate,k=auto"),
        ("/k 0", "k: Input should be greater than or equal to 1"),
        ("/k", "alpha=0.3,k=4"),
        ("/temperature 0.5", "temperature 0.5"),
        ("/temperature", "temperature 1"),
        ("/temperature -1", "temperature: Input should be greater than or equal to 0"),
        ("/tokens 9", "at most 9 tokens"),
        ("/system Be brief.", "system: Be brief."),
        ("/system", "no system prompt set"),
        ("/system -", "no system prompt set"),
        ("/new", "a new conversation"),
        ("/show", "no answer has finished yet."),
        ("/compare", "no prompt to compare on yet"),
        ("/tempratur 1", "unknown command '/tempratur'; did you mean '/temperature'? /help lists them all."),
        ("/xyzzy", "unknown command '/xyzzy'. /help lists them all."),
        ("/", "unknown command '/'"),
    ],
)
def test_commands(said: str, told: str, stored: str) -> None:
    found = talk(stored, said, "/quit")
    assert (found.exit_code, found.stdout) == (0, "")
    assert told in found.stderr.replace("\n", " ")


def test_help_names_every_command_within_80_columns(stored: str, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("COLUMNS", "80")
    found = talk(stored, "/help").stderr.splitlines()
    for name in COMMANDS:
        assert any(line.startswith(f"/{name} ") for line in found)
    assert len(found) == len(COMMANDS) + 4  # two introductory lines, and two about keys


def test_changed_settings_apply_to_the_next_answer(stored: str) -> None:
    found = talk(stored, "/strategy target", "/temperature 0", "/tokens 3", "hi", "/show")
    assert "target: 3 tokens in" in found.stderr and "pair" in found.stderr


def test_a_strategy_without_alpha_or_k_rejects_them(stored: str) -> None:
    found = talk(stored, "/strategy target", "/alpha 0.5", "/k 3", "/strategy speculative").stderr.replace("\n", " ")
    assert "strategy 'target' has no alpha; it takes no parameters." in found
    assert "strategy 'target' has no k;" in found
    assert "speculative:k=4" in found  # a rejected k is not remembered


def test_k_is_kept_for_later_strategies(stored: str) -> None:
    assert "speculative:k=4\n" in talk(stored, "/k auto", "/strategy speculative").stderr
    assert "speculative:k=7" in talk(stored, "/k 7", "/strategy speculative").stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["/strategy speculative", "/k auto"], "speculative:k=3\n"),
        (["/strategy speculative", "/k auto", "/k auto"], "speculative:k=3\n"),
        (["/k auto", "/alpha 0.5"], "speculative-cascade:rule=token-v3,alpha=0.5,k=3\n"),
        (["/strategy speculative", "/k auto", "/strategy speculative:stop=rate"], "speculative:stop=rate,k=3\n"),
        (["/strategy speculative:stop=rate", "/k auto"], "speculative:stop=rate,k=3\n"),
    ],
)
def test_a_number_ends_only_the_stop_that_auto_brought(before: list[str], after: str, stored: str) -> None:
    assert talk(stored, *before, "/k 3").stderr.endswith(after)


def test_new_clears_the_conversation(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("target"), SETTINGS)
    first = chat.ask("hi", lambda step: None)
    second = chat.ask("hi", lambda step: None)
    assert len(second.prompt_token_ids) > len(first.prompt_token_ids)
    chat.forget()
    assert chat.ask("hi", lambda step: None).token_ids == first.token_ids


def test_changing_the_system_prompt_keeps_the_conversation(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("target"), SETTINGS)
    answer = chat.ask("hi", lambda step: None).text
    chat.set_system("Be brief.")
    assert chat.conversation == Conversation("Be brief.", (("hi", answer),))
    assert chat.ask("again", lambda step: None).system == "Be brief."


def test_chat_turns_match_those_of_a_conversation(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("speculative"), SETTINGS)
    ours = [chat.ask(turn, lambda step: None) for turn in ("hi", "and then?")]
    theirs = list(converse(text_pair, parse("speculative"), Prompt(("hi", "and then?")), SETTINGS))
    assert [run.token_ids for run in ours] == [run.token_ids for run in theirs]


class CutShort:
    """Raises Ctrl-C while a round is shown."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, step: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_answer_is_kept_up_to_the_interruption(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("target"), SETTINGS)
    whole = chat.ask("hi", lambda step: None).text
    chat.forget()
    with pytest.raises(KeyboardInterrupt):
        chat.ask("hi", CutShort(after=3))
    ((turn, answer),) = chat.conversation.past
    assert turn == "hi" and whole.startswith(answer) and 0 < len(answer) < len(whole)
    assert isinstance(chat.ask("and then?", lambda step: None), Run)  # the pair is free again


@pytest.mark.parametrize("after", [3, 9])
def test_a_tentative_or_withdrawn_answer_is_not_kept(text_pair: Pair, after: int) -> None:
    chat = Chat(text_pair, parse("cascade:score=mean-logprob,threshold=0"), SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("hi", CutShort(after))  # eight tokens of the draft model, then the decision against them
    assert chat.conversation.past == ()


def test_an_interrupted_answer_keeps_what_may_begin_a_stop_text(text_pair: Pair) -> None:
    """It is held back until it is known not to, so it has not been shown."""
    chat = Chat(text_pair, parse("target"), replace(SETTINGS, stop=["0123456789"]))
    whole = chat.ask("hi", lambda step: None).text
    chat.forget()
    with pytest.raises(KeyboardInterrupt):
        chat.ask("hi", CutShort(after=3))
    ((_, answer),) = chat.conversation.past
    assert answer and whole.startswith(answer)


def test_an_answer_that_fails_midway_is_kept(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("target"), SETTINGS)
    whole = chat.ask("hi", lambda step: None).text
    chat.forget()
    rounds = []

    def fails(step: Any) -> None:
        rounds.append(step)
        if len(rounds) == 3:
            raise RunError("the draft model's context is full")

    with pytest.raises(RunError, match="context is full"):
        chat.ask("hi", fails)
    ((_, answer),) = chat.conversation.past
    assert answer and whole.startswith(answer)


def test_ctrl_c_ends_the_answer_and_a_second_one_the_chat(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, cut = AnswerStream.round, CutShort(after=3)

    def shown(view: AnswerStream, *what: Any) -> None:
        stock(view, *what)
        cut(None)

    monkeypatch.setattr(AnswerStream, "round", shown)
    found = talk(stored, "hi", "again", "/quit", flags=("-s", "target"))
    lines = found.stdout.splitlines()
    assert found.exit_code == 0 and found.stderr.count("interrupted") == 1
    assert len(lines) >= 2 and found.stderr.count("TV") == 1

    typed = iter(["/k"])

    def line(prompt: str) -> str:
        said = next(typed, None)
        if said is None:
            raise KeyboardInterrupt
        return said

    monkeypatch.setattr("cascli.cli.chat.next_line", line)
    assert talk(stored).exit_code == 0


def test_sigterm_ends_the_command_and_not_just_the_answer(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM ends the command, not the answer."""
    monkeypatch.setattr(AnswerStream, "round", lambda *_: _interrupt())
    found = talk(stored, "hi", "again")
    assert found.exit_code == 130 and "TV" not in found.stderr
    assert issubclass(Terminated, KeyboardInterrupt)


def test_sigterm_during_slash_compare_ends_the_chat(stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascli.jobs.compare.profile", lambda *_, **__: _interrupt())
    found = talk(stored, "/compare hi", "/help", flags=("--temperature", "0", "--max-new-tokens", "3"))
    assert found.exit_code == 130 and "/quit" not in found.stderr and "tok/s" in found.stdout


def test_a_failed_answer_does_not_end_the_chat(stored: str) -> None:
    """A prompt longer than the context is rejected; the next one is answered."""
    found = talk(stored, "x" * 5000, "hi", "/quit")
    assert "context" in found.stderr and found.stderr.count("TV") == 1 and found.exit_code == 0


def test_a_conversation_that_outgrew_the_context_is_told_of_new(stored: str) -> None:
    found = talk(stored, "x" * 5000, "/quit")
    assert "/new" not in found.stderr.partition("/help lists")[2]
    found = talk(stored, "x" * 200, "x" * 200, "/quit")
    assert "context" in found.stderr and "/new begins another conversation" in " ".join(found.stderr.split())


def test_an_answer_cut_by_the_context_is_told_from_one_at_the_limit(stored: str) -> None:
    found = talk(stored, "x" * 253, "/quit")
    assert "the context cut this answer at" in found.stderr and "of 6 tokens" in found.stderr
    assert "the context cut" not in talk(stored, "hi", "/quit").stderr


def test_lines_that_are_not_utf8_are_refused_individually(stored: str) -> None:
    found = CliRunner().invoke(app, ["chat", "-c", stored, "--max-new-tokens", "2"], input=b"\xff\xfe\nhi\n")
    assert "not UTF-8 text" in found.stderr and found.stderr.count("TV") == 1


def test_a_prompt_may_begin_with_a_slash(stored: str) -> None:
    found = talk(stored, " /usr/bin?")
    assert found.stderr.count("TV") == 1


def test_slash_compare_prints_what_compare_prints(stored: str) -> None:
    found = talk(stored, "hi", "/compare", "/compare something else", flags=("--temperature", "0"))
    assert found.stdout.count("tok/s") >= 2 and "token-cascade" in found.stdout


def test_quiet_and_verbose(stored: str) -> None:
    assert talk(stored, "hi", flags=("-q",)).stderr == ""
    assert "/quit" in talk(stored, "/help", flags=("-q",)).stderr
    assert "rounds by accepted tokens" in talk(stored, "hi", flags=("-v",)).stderr


def test_chat_starts_with_exactly_one_strategy(stored: str) -> None:
    found = talk(stored, flags=("-s", "target", "-s", "draft"))
    assert found.exit_code == 2 and "one strategy" in found.stderr


def test_chat_works_with_a_target_alone(tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    alone = {key: value for key, value in pair(300).items() if key != "draft"}
    file = tmp_path / "alone.yaml"
    file.write_text(json.dumps(alone))
    found = talk(str(file), "hi", "/strategy speculative")
    assert "needs a draft model" in found.stderr.replace("\n", " ") and found.stderr.count("TV") == 1


class Keyboard:
    """A terminal into which these lines are typed."""

    def __init__(self, patch: pytest.MonkeyPatch, *typed: str) -> None:
        self._typed = iter(typed)
        patch.setattr(sys, "stdin", self)
        patch.setattr(sys, "stdout", self)
        patch.setattr("builtins.input", self._input)

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def _input(self, prompt: str) -> str:
        import readline

        line = next(self._typed, None)
        if line is None:
            raise EOFError
        readline.add_history(line)
        return line


def test_history_is_kept_between_chats_and_readable_only_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = pytest.importorskip("readline")
    file = tmp_path / "home" / "chat_history"
    for typed in ("first", "second"):
        Keyboard(monkeypatch, typed)
        with history(file):
            assert (next_line("> "), next_line("> ")) == (typed, None)
    assert "first" in file.read_text() and "second" in file.read_text()
    assert file.stat().st_mode & 0o077 == 0
    with history(file):
        assert readline.get_current_history_length() == 2
    readline.clear_history()


def test_chat_works_without_a_writable_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("readline")
    (tmp_path / "home").write_text("a file where the folder should be")
    Keyboard(monkeypatch, "hi")
    with history(tmp_path / "home" / "chat_history"):
        assert next_line("> ") == "hi"


def test_piped_input_is_not_saved_to_history(stored: str, tmp_path: Path) -> None:
    talk(stored, "hi")
    assert not (tmp_path / "home" / "chat_history").exists()


def test_refused_changes_leave_everything_unchanged(text_pair: Pair) -> None:
    chat = Chat(text_pair, parse("speculative:k=3"), SETTINGS)
    before = (chat.strategy, chat.settings, chat.conversation)
    for change in (
        lambda: chat.set_strategy("nothing"),
        lambda: chat.set_k("100"),
        lambda: chat.set_parameter("alpha", "1"),
        lambda: chat.set_setting("temperature", "hot"),
    ):
        with pytest.raises(UsageError):
            change()
    assert (chat.strategy, chat.settings, chat.conversation) == before


def test_a_template_with_its_own_start_token_gets_no_second_one() -> None:
    """This tokenizer would add a second beginning; two change the models' output without any warning."""
    loaded = load_pair("tiny-random")
    tokenizer = loaded.tokenizer
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, tokenizer.eos_token_id)]
    )
    assert encode(loaded, "ab") == [256, 97, 98]
    tokenizer.chat_template = "{{ eos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    assert encode(loaded, "ab") == [256, 97, 98]


def test_without_a_template_the_turn_follows_the_whole_conversation() -> None:
    talk = Conversation("be brief", (("a", "b"), ("c", "d")))
    assert bytes(encode(load_pair("tiny-random"), "e", talk)) == b"be brief\na\nb\nc\nd\ne"


WITHOUT_THINKING = (
    "{% for m in messages %}{{ m.content.split('</think>')[-1] }}b{% endfor %}"
    "{% if add_generation_prompt %}a{% endif %}"
)
"""A template in the style of Qwen3's: of earlier answers it keeps what follows their thinking."""


def test_templates_find_the_thinking_of_earlier_answers_though_it_is_markup(tmp_path: Path) -> None:
    """As if the two tokens were text: markup is left out of texts, but here it says what to drop."""
    asked, found = Prompt(("ab", "ba")), []
    for special in (False, True):
        tokenizer = byte_level(["a", "b", "c"], special=["<end>"])
        tokenizer.add_tokens([AddedToken(name, special=special) for name in ("<think>", "</think>")])
        tokenizer.chat_template = WITHOUT_THINKING
        tokenizer.save_pretrained(tmp_path / str(special))
        made = model(3, len(tokenizer), num_hidden_layers=1)
        made["source"]["tokenizer"] = str(tmp_path / str(special))
        loaded = load_pair({"target": made})
        assert loaded.thinking == (4, 5)
        for seed, stop in ((0, []), (1, []), (2, ["bb"]), (3, ["</think>"])):
            settings = Resolved(max_new_tokens=8, seed=seed, stop=stop)
            found.append(list(converse(loaded, parse("target"), asked, settings)))
    as_text, as_markup = found[:4], found[4:]
    for theirs, ours in zip(as_text, as_markup, strict=True):
        assert [run.prompt_token_ids for run in ours] == [run.prompt_token_ids for run in theirs]
        assert "think" not in ours[0].text
    assert all(5 in run.token_ids for run, _ in as_markup)
    assert {run.finish_reason for run, _ in as_markup} == {"length", "stop"}
    chat = Chat(loaded, parse("target"), Resolved(max_new_tokens=8))
    assert [chat.ask(turn, lambda step: None).prompt_token_ids for turn in asked.turns] == [
        run.prompt_token_ids for run in as_markup[0]
    ]
