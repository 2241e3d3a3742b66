"""What every decoding command does first: resolve the settings, find the prompts, load the pair."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cascli.cli.options import PAIR, flag_name
from cascli.errors import PairWarning, UsageError, located

if TYPE_CHECKING:  # and inside the functions below: a help page must not wait for them
    from cascli.analysis.profile import Profile
    from cascli.cli.options import Flags
    from cascli.config import PairConfig
    from cascli.jobs.step_times import RunOptions
    from cascli.models.pair import Pair
    from cascli.prompts import Prompt
    from cascli.render.console import Screen
    from cascli.settings import Resolved, Settings
    from cascli.strategies import Strategy
    from cascli.trace import Document

D = TypeVar("D", bound="Document")


@dataclass(frozen=True)
class Plan:
    """A command's resolved inputs."""

    config: PairConfig
    settings: Resolved
    screen: Screen
    dtype: str | None
    """From a flag or the environment; if None, each model's own entry in the pair's file decides."""
    given: Settings
    """The settings given on the command line itself."""

    def elsewhere(self, key: str) -> str:
        """Where a value was given, if not on the command line: errors about it start with this."""
        return "" if key in self.given.given() else self.settings.sources.get(key, "")

    def strategies(self, default: Sequence[str]) -> list[Strategy]:
        """The requested strategies, else these defaults.

        Raises:
            UsageError: a strategy does not exist or has an invalid parameter; the message starts with where it was
                named.
        """
        if not self.settings.strategy:
            return parse_strategies(default, self.settings.num_speculative_tokens)
        with located(self.elsewhere("strategy")):
            return parse_strategies(self.settings.strategy, self.settings.num_speculative_tokens)

    def single_strategy(self, default: str, several: str) -> Strategy:
        """The one requested strategy, else the default.

        Raises:
            UsageError: a strategy does not exist or has an invalid parameter, or there are several: `several` is the
                message then. The message starts with where they were named.
        """
        first, *more = self.strategies([default])
        if more:
            with located(self.elsewhere("strategy")):
                raise UsageError(several)
        return first

    def prompts_from_file(self, argument: str | None) -> bool:
        """Whether the prompts come from a file; a prompt on the command line overrides a file named elsewhere."""
        return argument is None and bool(self.settings.prompts)

    def load(self) -> Pair:
        """Load the pair according to the settings, with progress on stderr.

        Raises:
            RunError: weights, memory or the device are not available.
        """
        return self.load_as(self.settings.device, self.dtype)

    def load_as(self, device: str | None, dtype: str | None) -> Pair:
        """Load the pair on a device and print what its user should know; without a dtype, the pair's own is used.

        Raises:
            RunError: weights, memory or the device are not available.
        """
        from cascli.cli.progress import Progress
        from cascli.jobs import step_times

        for note in self.check_sources():
            self.screen.note(note)
        with (
            Progress(self.screen, f"loading {self.config.name}") as progress,
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always", PairWarning)
            progress.say("importing torch")
            import torch  # takes seconds, so each import is named

            if self.settings.threads is not None:
                torch.set_num_threads(self.settings.threads)

            progress.say("importing transformers")
            from cascli.models.load import load_pair

            quiet_libraries()
            pair = load_pair(
                self.config,
                device=device,
                dtype=dtype,
                offline=self.settings.offline,
                cuda_graphs=self.settings.cuda_graphs,
                compile=self.settings.compile,
                report=progress.report,
                on_stage=progress.stage,
            )
        for warning in caught:
            if issubclass(warning.category, PairWarning):
                self.screen.note(str(warning.message))
        for role, model in pair.models.items():
            why = model.eager_because
            if why is not None:
                self.screen.note(f"the {role} model runs without CUDA graphs: {why}")
            why = model.unfused_because
            if why is not None:
                self.screen.note(f"the {role} model's steps are not fully fused: {why}")
        if self.settings.threads is None:
            _one_thread_for_tiny_models(pair)
        if self.settings.compile and pair.device.type == "cpu":
            self.screen.note(f"{self.settings.source('compile')} is for GPUs; on a CPU steps run uncompiled")
        known = step_times.load_step_times(self.config, self.run_options(device, dtype))
        pair.steps = None if known is None else known.profile
        return pair

    def keep_steps(self, profile: Profile) -> None:
        """Store step times, from which later commands predict how long something will take."""
        from cascli.jobs import step_times

        step_times.save_step_times(self.config, self.run_options(self.settings.device, self.dtype), profile)

    def run_options(self, device: str | None, dtype: str | None) -> RunOptions:
        """How the pair runs on this device and in this precision, with the other flags as given."""
        from cascli.jobs.step_times import RunOptions

        settings = self.settings
        return RunOptions(device, dtype, settings.threads, settings.cuda_graphs, settings.compile)

    def check_sources(self) -> Iterator[str]:
        """Check that all weights are available, before the seconds that torch takes to import.

        Yields a note for each hub name that may have been meant as a folder.

        Raises:
            ConfigError: a path that holds no model.
            RunError: weights that are not on this machine and must not be fetched.
        """
        from cascli.config import HubSource, PathSource, RandomSource
        from cascli.weights import store

        for role, model in self.config.models.items():
            source = model.source
            if isinstance(source, HubSource) and "/" not in source.hub and not store.disk_bytes(source):
                yield f"{role}: there is no folder '{source.hub}' here, so it is looked up on the hub"
            if isinstance(source, RandomSource):
                continue
            if self.settings.offline:
                store.require_local(source)
            elif isinstance(source, PathSource):
                with model.located():
                    store.locate(source)

    def note_captures(self, pair: Pair) -> None:
        """Report how long capturing the models' steps took, if they were compiled or with -v."""
        for role, info in pair.info.models.items():
            if info.capture_seconds and (info.compiled or self.screen.verbose):
                done = [word for word, was in (("compiling", info.compiled), ("capturing", info.cuda_graphs)) if was]
                what = " and ".join(done)
                self.screen.note(f"{what} the {role} model's steps took {info.capture_seconds:.1f} s up front")


def import_torch(screen: Screen) -> None:
    """Import torch, showing that it takes seconds."""
    if "torch" not in sys.modules:
        from cascli.cli.progress import Progress

        with Progress(screen, "importing torch"):
            import torch  # noqa: F401


def _one_thread_for_tiny_models(pair: Pair) -> None:
    """Use one CPU thread for tiny models, unless OMP_NUM_THREADS is set.

    A second thread makes 2 million weights a sixth faster, but ten times slower when it is kept waiting. Threads pay
    off from about 10 million weights; the times are in benchmarks/LOG.md.
    """
    from cascli.models.size import TINY

    tiny = all((info.parameters or TINY) < TINY for info in pair.info.models.values())
    if tiny and pair.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


def requested_pair(flags: Flags, *, models_only: bool = False) -> PairConfig | None:
    """The pair named by flags, else by `CASCLI_CONFIG`, `CASCLI_DRAFT` and `CASCLI_TARGET`; None if there is none.

    The two are never mixed: a draft model from the environment does not apply to a pair from the command line.

    Args:
        flags: those of the command.
        models_only: for a command without `--config`, to which its variable does not apply either.

    Raises:
        UsageError: a pair or a model that does not exist, or a draft model alone.
    """
    from cascli.config import load_config, pair_of_models
    from cascli.settings import in_environment, variable

    named, spell, where = {key: getattr(flags, key) for key in PAIR}, flag_name, ""
    if all(value is None for value in named.values()):  # an empty string counts as given, and is an error
        named, spell = {key: os.environ.get(variable(key)) or None for key in PAIR}, variable
        if models_only:
            named["config"] = None
        where = in_environment("config")
    with located(where):
        pair = None if named["config"] is None else load_config(named["config"])
    if named["draft"] is not None or named["target"] is not None:
        return pair_of_models(named["draft"], named["target"], pair, spell=spell)
    return pair


def requested_settings(flags: Flags) -> Settings:
    """The settings given by flags, else by the environment; a pair's file is not read.

    Raises:
        UsageError: an invalid value in the environment.
    """
    from cascli.settings import from_environment

    return from_environment().model_copy(update=flags.given.given())


def from_environment_alone(flags: Flags) -> dict[str, str]:
    """The settings that only the environment gives, and how errors name each of them."""
    from cascli.settings import from_environment, in_environment

    return {key: in_environment(key) for key in from_environment().given() if key not in flags.given.given()}


def resolved(given: Settings, config: PairConfig | None = None) -> Resolved:
    """Merge flags, environment, pair file and defaults, in this order.

    Raises:
        UsageError: an invalid value in the environment.
    """
    from cascli.settings import Settings, from_environment, in_environment, resolve

    defaults, place = (
        (Settings(), str) if config is None else (_defaults_of(config), lambda key: config.place(f"defaults.{key}"))
    )
    return resolve(given, from_environment(), defaults, spell=(flag_name, in_environment, place))


def _defaults_of(config: PairConfig) -> Settings:
    """The pair's defaults; a file of prompts that they name is where the pair's file says, from any folder."""
    from cascli.weights.prompt_sets import SETS

    prompts = config.defaults.prompts
    if prompts is None or prompts in ("-", "builtin", *SETS):
        return config.defaults
    return config.defaults.model_copy(update={"prompts": config.beside(prompts)})


def plan(flags: Flags, config: PairConfig | None = None, *, writes: bool = False) -> Plan:
    """Resolve flags, environment, pair file and defaults, in this order.

    Args:
        flags: what the command line gives.
        config: a pair already chosen.
        writes: the command writes files without -o too, so it goes on when nobody reads its output any more.

    Raises:
        UsageError: an invalid value in any of them.
    """
    from cascli.config import DEFAULT_PAIR, load_config
    from cascli.render.console import screen
    from cascli.settings import from_environment

    environment = from_environment()
    config = config or requested_pair(flags) or load_config(DEFAULT_PAIR)
    settings = resolved(flags.given, config)
    lasting = writes or settings.output not in (None, "-")
    view = screen(settings.color, quiet=settings.quiet, verbose=settings.verbose, lasting=lasting)
    return Plan(config, settings, view, flags.given.dtype or environment.dtype, flags.given)


def for_several(plan: Plan, flags: Flags) -> Plan:
    """The plan with room for whole answers, unless a flag or the environment sets the number of tokens."""
    from cascli.settings import with_whole_answers

    if requested_settings(flags).max_new_tokens is not None:
        return plan
    return replace(plan, settings=with_whole_answers(plan.settings))


def command_line() -> str:
    """The command line, quoted for a shell."""
    return shlex.join(["cascli", *sys.argv[1:]])


def with_command(document: D) -> D:
    """The document with the command line that made it."""
    return document.model_copy(update={"command": command_line()})


def parse_strategies(texts: Sequence[str], k: int | None) -> list[Strategy]:
    """Parse strategies; k applies where a string does not set its own."""
    from cascli.strategies import parse

    return [parse(text, k) for text in texts]


def note_cautions(plan: Plan, strategies: Sequence[Strategy]) -> None:
    """Warn about rules that rely on the draft's confidence if an EAGLE-3 head drafts, which is not made for that."""
    from cascli import plugins
    from cascli.strategies.base import Speculating

    if not plan.config.by_head:
        return
    drafting = [each for each in strategies if isinstance(each, Speculating) and each.needs_draft]
    trusting = {
        plugins.name_of(type(each.verification_rule)) for each in drafting if each.verification_rule.reads_confidence
    }
    if trusting:
        plan.screen.note(
            f"{', '.join(sorted(trusting))}: relies on the draft's confidence, but an EAGLE-3 head is not a language"
            " model; speculative, mentored or cactus suit it better"
        )


def prompts(argument: str | None, plan: Plan, command: str, *, whole: bool = False) -> list[Prompt]:
    """The prompts from the argument, a file or a pipe.

    Args:
        argument: the prompt on the command line, or `-`.
        plan: gives the file, and the number of its prompts to take.
        command: the command's name, for an example in an error message.
        whole: take all prompts of the file.

    Raises:
        UsageError: no prompt, both a prompt and a file, or a limit without a file.
    """
    from cascli.prompts import Prompt, builtin, prompts_in, read_prompts
    from cascli.weights.prompt_sets import SETS, prompt_set

    if argument is not None and plan.given.prompts:
        raise UsageError("give a PROMPT or --prompts, not both.")
    if plan.prompts_from_file(argument):
        name, limit = str(plan.settings.prompts), None if whole else plan.settings.limit
        if name == "builtin":
            return builtin()[:limit]
        if name in SETS:
            return prompt_set(name, limit)
        with located(plan.elsewhere("prompts")):
            return prompts_in(_from_stdin(), "stdin", limit) if name == "-" else read_prompts(Path(name), limit)
    if plan.given.limit is not None:
        raise UsageError("--limit needs a file of prompts: give --prompts, or leave it out.")
    if argument is None and sys.stdin is not None and not sys.stdin.isatty():
        argument = "-"
    if argument == "-":
        argument = _from_stdin()
    if not argument:
        raise UsageError(
            "no prompt: give one as an argument, on stdin, or with --prompts FILE.jsonl.\n"
            f'For example: cascli {command} "Who is Buzz Aldrin?"'
        )
    return [Prompt((argument,))]


def _from_stdin() -> str:
    from cascli.files import PROMPTS_BYTES, bounded

    if sys.stdin is None:
        raise UsageError("stdin is closed: give the prompt as an argument, or --prompts FILE.jsonl.")
    try:
        return bounded(sys.stdin.buffer, "stdin", PROMPTS_BYTES).decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UsageError("stdin is not UTF-8 text.") from None


def quiet_libraries() -> None:
    """Keep transformers' own progress bars and warnings off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
