"""Pictures of measurements, with matplotlib: an extra, imported only when a picture is requested."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascli.analysis import theory
from cascli.analysis.bench import Bench
from cascli.analysis.prospects import ACCEPTANCES, prospects
from cascli.errors import UsageError
from cascli.files import named

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
DRAFT, TARGET = "#c2410c", "#1d4ed8"
LONGEST_K = 12
NOT_DRAWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def pyplot() -> Any:
    """Matplotlib's pyplot, with a backend that opens no window.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'cascli[plots]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.rcParams |= {"axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "cascli"}
    return pyplot


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Let no warnings of matplotlib about characters that its font cannot draw reach the user's terminal."""
    with warnings.catch_warnings():
        for about in (r"Glyph \d+", "Matplotlib currently does not support"):
            warnings.filterwarnings("ignore", about, UserWarning)
        yield


def printable(title: str) -> str:
    """A title in one line, without the characters that no font has."""
    return NOT_DRAWN.sub("", " ".join(title.split()))


def plot_bench(bench: Bench, path: Path) -> None:
    """Panels: v(n), step times by context, speed-up by k in theory (and as measured, if it was), and by batch."""
    plt = pyplot()
    panels = [_blocks, _contexts, _gains, *([_batches] if bench.batches and bench.pair.draft else [])]
    figure, axes = plt.subplots(1, len(panels), figsize=(13 * len(panels) / 3, 4), layout="constrained")
    for panel, own in zip(panels, axes, strict=True):
        panel(own, bench)
    pair = bench.pair
    marked = "" if bench.synthetic is None else " · synthetic acceptance"
    figure.suptitle(
        printable(f"{pair.name}: {pair.dtypes}, {bench.environment['device']}{marked}"),
        fontsize=10,
        parse_math=False,
    )
    with named(path), without_glyph_warnings():
        figure.savefig(path, dpi=150)
    plt.close(figure)


def _blocks(axes: Axes, bench: Bench) -> None:
    for number, profile in enumerate(bench.profiles):
        blocks = sorted(profile.target)
        shade = 1 - 0.7 * number / max(len(bench.profiles) - 1, 1)
        values = [profile.v(n) for n in blocks]
        axes.plot(blocks, values, "o-", color=TARGET, alpha=shade, label=f"after {profile.context} tokens")
    axes.axhline(1, color="grey", lw=0.8)
    axes.set(xlabel="tokens in one target call", ylabel="v: time over that of one token", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def _contexts(axes: Axes, bench: Bench) -> None:
    contexts = [profile.context for profile in bench.profiles]
    for role, color in (("target", TARGET), ("draft", DRAFT)):
        if role not in bench.pair.models:
            continue
        steps = [getattr(profile, role)[1] for profile in bench.profiles]
        middle = [1000 * step.median for step in steps]
        spread = [
            [1000 * (step.median - step.low) for step in steps],
            [1000 * (step.high - step.median) for step in steps],
        ]
        axes.errorbar(contexts, middle, spread, fmt="o-", color=color, capsize=2, label=f"{role}, one token")
    axes.set(xlabel="tokens before the step", ylabel="ms", xscale="log", ylim=(0, None))
    axes.set_xticks(contexts, [str(context) for context in contexts])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)


def _gains(axes: Axes, bench: Bench) -> None:
    profile = bench.profiles[0]
    ks = range(1, LONGEST_K + 1)
    known = min(profile.longest - 1, LONGEST_K)
    for number, a in enumerate(ACCEPTANCES):
        gains = [theory.speed_up(a, k, profile.c, profile.v(k + 1)) for k in ks]
        shade = 0.25 + 0.75 * number / (len(ACCEPTANCES) - 1)
        (line,) = axes.plot(ks[:known], gains[:known], "-", color=DRAFT, alpha=shade)
        axes.plot(ks[known - 1 :], gains[known - 1 :], ":", color=DRAFT, alpha=shade)  # v is extrapolated
        axes.annotate(f"{a}", (ks[-1], gains[-1]), xytext=(4, -3), textcoords="offset points", fontsize=8)
        line.set_label("theory, by acceptance" if number == len(ACCEPTANCES) - 1 else "_")
    if bench.synthetic is not None:
        points = [(each.k, each.measured_speed_up) for each in bench.synthetic.accounts]
        label = f"measured, synthetic acceptance {bench.synthetic.acceptance}"
        axes.plot(*zip(*points, strict=True), "s", color=TARGET, label=label)
    axes.axhline(1, color="grey", lw=0.8)
    axes.set(xlabel="k, drafted tokens per round", ylabel="speed over target alone", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8)


def _batches(axes: Axes, bench: Bench) -> None:
    sizes = [profile.batch_size for profile in bench.batches]
    by_batch = [prospects(profile) for profile in bench.batches]
    for place, acceptance in enumerate(ACCEPTANCES):
        gains = [row[place].speed_up for row in by_batch]
        shade = 0.3 + 0.7 * place / (len(ACCEPTANCES) - 1)
        axes.plot(sizes, gains, "o-", color=TARGET, alpha=shade, label=f"acceptance {acceptance}")
    axes.axhline(1, color="grey", lw=0.8)
    axes.set(xlabel="answers at once", ylabel="predicted speed-up at the best k", xscale="log", ylim=(0, None))
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=8)
