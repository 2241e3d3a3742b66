"""cascli chat: load once, then read one prompt per line; every answer is streamed as by `generate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cascli.cli import common
from cascli.cli.errors import Terminated, message_and_code
from cascli.cli.lines import history, next_line
from cascli.cli.options import LOADING, Flags, with_shared
from cascli.errors import CascliError, UsageError, plain, suggestion

if TYPE_CHECKING:
    from cascli.jobs.chat import Chat

NAME = "chat"
EXAMPLE = """\
cascli chat
cascli chat -s speculative:k=4 --temperature 0
cascli chat -c tiny-random
"""
PROMPT = "> "


@with_shared(
    *LOADING, "strategy", "num_speculative_tokens",
    "max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop", "system", "raw", "quiet", "verbose", "color",
)  # fmt: skip
def command(flags: Flags) -> None:
    """Chat with a pair: it is loaded once, and its strategy and settings can be changed between answers (/help)."""
    from cascli.settings import default_strategy
    from cascli.weights.home import cache_home

    plan = common.plan(flags)
    several = "chat starts with one strategy: choose it with -s; /strategy changes it, /compare shows several."
    strategy = plan.single_strategy(default_strategy(plan.config), several)
    pair = plan.load()
    common.note_cautions(plan, [strategy])
    from cascli.jobs.chat import Chat

    with history(cache_home() / "chat_history"):
        Session(plan, Chat(pair, strategy, plan.settings)).run()
    plan.note_captures(pair)


class Session:
    """Reads lines and executes them until there are no more."""

    def __init__(self, plan: common.Plan, chat: Chat) -> None:
        self._plan, self._screen, self._chat = plan, plan.screen, chat
        self._known: set[str] = set()
        self._finished = False

    def run(self) -> None:
        """Run until /quit, the end of the input, or Ctrl-C at the prompt."""
        self._screen.note(f"{self._chat.pair.name}: {self._chat.strategy.spec}\n/help lists the commands")
        while not self._finished:
            try:
                line = next_line(PROMPT)
            except Terminated:
                raise
            except KeyboardInterrupt:
                self._screen.err.print()
                return
            except CascliError as error:
                self._print_error(error)
                continue
            if line is None:
                return
            self._guarded(line)

    def _guarded(self, line: str) -> None:
        """Execute a line; an error is printed and the session continues."""
        try:
            self._execute(line)
        except Terminated:
            raise
        except KeyboardInterrupt:
            self._screen.note("… interrupted")  # follows the ^C that a terminal shows
        except BrokenPipeError:
            raise
        except Exception as error:
            self._print_error(error)

    def _print_error(self, error: Exception) -> None:
        message, _ = message_and_code(error)
        self._screen.err.print(plain(message), markup=False, highlight=False)

    def _execute(self, line: str) -> None:
        if not line.strip():
            return
        if not line.startswith("/"):
            self._answer(line.strip())
            return
        name, _, rest = line[1:].strip().partition(" ")
        if name not in COMMANDS:
            hint = suggestion(name, COMMANDS, prefix="/") or "."
            raise UsageError(f"unknown command '/{name}'{hint} /help lists them all.")
        COMMANDS[name](self, rest.strip())

    def _answer(self, turn: str) -> None:
        from cascli.render.marks import is_mixed
        from cascli.render.stream import AnswerStream
        from cascli.render.summary import cut_by_context, lines, one_line

        strategy = self._chat.strategy
        view = AnswerStream(self._screen, tentative=strategy.tentative, mixed=is_mixed(strategy.name))
        view.known = self._known

        try:
            run = self._chat.ask(turn, view.event)
        finally:
            view.end()
            self._known |= view.seen
        cut = cut_by_context(run)
        notes = [one_line(run), *([] if cut is None else [cut])]
        for text in lines(run, verbose=True) if self._screen.verbose else notes:
            self._screen.note(text)

    def strategy(self, text: str) -> None:
        """Show or set the strategy."""
        if text:
            self._chat.set_strategy(text)
            common.note_cautions(self._plan, [self._chat.strategy])
        self._print(self._chat.strategy.spec)

    def alpha(self, text: str) -> None:
        """Show or set the rule's alpha."""
        if text:
            self._chat.set_parameter("alpha", text)
        self._print(self._chat.strategy.spec)

    def k(self, text: str) -> None:
        """Show or set the number of tokens drafted per round."""
        if text:
            self._chat.set_k(text)
        self._print(self._chat.strategy.spec)

    def temperature(self, text: str) -> None:
        """Show or set the temperature; 0 is greedy."""
        if text:
            self._chat.set_setting("temperature", text)
        self._print(f"temperature {self._chat.settings.temperature:g}")

    def tokens(self, text: str) -> None:
        """Show or set the maximum length of answers, in tokens."""
        if text:
            self._chat.set_setting("max_new_tokens", text)
        self._print(f"answers of at most {self._chat.settings.max_new_tokens} tokens")

    def compare(self, text: str) -> None:
        """Compare strategies on the last prompt, or on TEXT."""
        prompt = text or self._chat.last_turn
        if prompt is None:
            raise UsageError("no prompt to compare on yet: use /compare TEXT, or ask something first.")
        compare(self._plan, self._chat, prompt)

    def system(self, text: str) -> None:
        """Show or set the system prompt; - removes it."""
        if text:
            self._chat.set_system(None if text == "-" else text)
        now = self._chat.settings.system
        self._print("no system prompt set" if now is None else f"system: {now}")

    def new(self, text: str) -> None:
        """Start a new conversation."""
        self._chat.forget()
        self._print("a new conversation")

    def show(self, text: str) -> None:
        """Show all numbers of the last answer."""
        from cascli.render.summary import lines

        if self._chat.last is None:
            raise UsageError("no answer has finished yet.")
        for line in lines(self._chat.last, verbose=True):
            self._print(line)

    def help(self, text: str) -> None:
        """List the commands."""
        width = max(len(name) + len(ARGUMENTS.get(name, "")) for name in COMMANDS) + 3
        for name, handler in COMMANDS.items():
            call = f"/{name} {ARGUMENTS.get(name, '')}"
            self._print(f"{call:{width}}{(handler.__doc__ or '').rstrip('.')}")
        self._print("Anything else is a prompt, as is any line that starts with a space.")
        self._print("Ctrl-C stops an answer and keeps what was written. At the prompt it quits.")

    def quit(self, text: str) -> None:
        """End the chat."""
        self._finished = True

    def _print(self, text: str) -> None:
        """Print requested output, even with --quiet."""
        self._screen.err.print(text, style="dim", markup=False, highlight=False)


Handler = Callable[[Session, str], None]
COMMANDS: dict[str, Handler] = {
    "strategy": Session.strategy,
    "alpha": Session.alpha,
    "k": Session.k,
    "temperature": Session.temperature,
    "tokens": Session.tokens,
    "compare": Session.compare,
    "system": Session.system,
    "new": Session.new,
    "show": Session.show,
    "help": Session.help,
    "quit": Session.quit,
}
ARGUMENTS = {
    "strategy": "[SPEC]",
    "alpha": "[A]",
    "k": "[N|auto]",
    "temperature": "[T]",
    "tokens": "[N]",
    "compare": "[TEXT]",
    "system": "[TEXT]",
}
"""The arguments of commands, as /help shows them."""


def compare(plan: common.Plan, chat: Chat, prompt: str) -> None:
    """Show what `cascli compare` shows for a prompt, with the chat's settings."""
    from cascli.analysis.comparison import default_strategies
    from cascli.cli.compare import run_and_show
    from cascli.jobs.compare import Repeats, conversations
    from cascli.render.comparison import print_explanation

    strategies = common.parse_strategies(default_strategies(chat.pair), chat.settings.num_speculative_tokens)
    repeats = Repeats(chat.pair, conversations(prompt), strategies, chat.settings)
    comparison, ended_by = run_and_show(plan.screen, repeats)
    print_explanation(comparison, plan.screen)
    if isinstance(ended_by, CascliError | Terminated | OSError):
        raise ended_by
