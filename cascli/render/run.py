"""A saved run on the terminal: the answer, its trace with -v, and its numbers."""

from __future__ import annotations

from rich.text import Text

from cascli.render.console import Screen
from cascli.render.marks import legend, marked, visible
from cascli.render.stream import describe_handover
from cascli.render.summary import lines, with_newline
from cascli.trace import Round, Run


def print_run(run: Run, screen: Screen) -> None:
    """Print the answer on stdout, with -v every round and its verdicts; print the numbers on stderr."""
    screen.write(with_newline(run.text))
    if run.handover is not None:
        screen.note(describe_handover(run.handover))
    if screen.verbose and not screen.quiet:
        print_rounds(run, screen)
    for line in lines(run, verbose=screen.verbose):
        screen.note(line)


def print_rounds(run: Run, screen: Screen) -> None:
    """Print one line per round: kept drafts, the rejected one with its probabilities, and what followed.

    With block verification, h is the probability that the prefix ending with the rejected draft would have passed.
    """
    colored = screen.colored
    for number, round_ in enumerate(run.rounds, 1):
        line = Text(f"{number:4} ", style="dim")
        line.append_text(_round(round_, colored, by_block=run.by_block))
        screen.out.print(line, soft_wrap=True)
    events = {token.event for token in run.emitted} | ({"rejected"} if run.metrics.num_draft_tokens else set())
    screen.out.print(legend(events, colored=colored))


def _round(round_: Round, colored: bool, *, by_block: bool) -> Text:
    parts: list[Text] = []
    kept = [token for token in round_.emitted if token.event != "residual" and token.event != "bonus"]
    parts += [marked(visible(token.text), token.event, colored=colored) for token in kept]
    first_bad = next((token for token in round_.drafted if not token.accepted), None)
    if first_bad is not None:
        parts.append(marked(visible(first_bad.text), "rejected", colored=colored))
        prefix = f", h {first_bad.accept_prob:.2f}" if by_block else ""
        parts.append(Text(f"(q {first_bad.q:.2f}, p {first_bad.p:.2f}, pi {first_bad.pi:.2f}{prefix})", style="dim"))
    parts += [
        marked(visible(token.text), token.event, colored=colored) for token in round_.emitted if token not in kept
    ]
    return Text(" ").join(parts)
