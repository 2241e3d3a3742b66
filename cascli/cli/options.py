"""The flags that commands share, each defined once, and the decorator that adds them to a command.

A command that uses shared options receives one `Flags` object in their place: the pair's name and the validated values
that the user gave. Precedence is resolved later, when the pair's file is known.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascli.cli import complete
from cascli.render import formats

if TYPE_CHECKING:
    from cascli.settings import Settings

MODELS, STRATEGY, SAMPLING, PROMPT, OUTPUT = "Models", "Strategy", "Sampling", "Prompt", "Output"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **more)


SHARED: dict[str, tuple[Any, Any]] = {
    "config": (
        str,
        _option(
            "--config",
            "-c",
            panel=MODELS,
            metavar="PAIR",
            help="Pair name (see: cascli pairs) or YAML file. (default qwen2.5-coder)",
            autocompletion=complete.pairs,
        ),
    ),
    "draft": (
        str,
        _option(
            "--draft",
            panel=MODELS,
            metavar="MODEL",
            help="Draft model: a folder, a .gguf file, or a hub name[@revision]; eagle3:NAME is an EAGLE-3 head.",
        ),
    ),
    "target": (
        str,
        _option(
            "--target",
            panel=MODELS,
            metavar="MODEL",
            help="Target model, as for --draft; with -c, replaces the pair's.",
        ),
    ),
    "device": (
        str,
        _option(
            "--device",
            panel=MODELS,
            metavar="DEVICE",
            help="auto, cpu, cuda or cuda:1. (default auto)",
            autocompletion=complete.devices,
        ),
    ),
    "dtype": (
        str,
        _option(
            "--dtype",
            panel=MODELS,
            metavar="DTYPE",
            help="auto, float32, bfloat16, float16 or int8. (default auto)",
            autocompletion=complete.dtypes,
        ),
    ),
    "threads": (
        int,
        _option(
            "--threads",
            panel=MODELS,
            metavar="N",
            help="CPU threads; 1 for fair ratios on a busy machine. (default all cores)",
        ),
    ),
    "cuda_graphs": (
        bool,
        _option("--cuda-graphs/--no-cuda-graphs", panel=MODELS, help="Do not capture decoding steps on a GPU."),
    ),
    "compile": (
        bool,
        _option("--compile/--no-compile", panel=MODELS, help="Use torch.compile for the steps on a GPU."),
    ),
    "offline": (bool, _option("--offline/--no-offline", panel=MODELS, help="Fail rather than download.")),
    "strategy": (
        list[str],
        _option(
            "--strategy",
            "-s",
            panel=STRATEGY,
            metavar="STRATEGY",
            help="Name and parameters as one string (see: cascli strategies).",
            autocompletion=complete.strategies,
        ),
    ),
    "num_speculative_tokens": (
        int,
        _option(
            "--num-speculative-tokens",
            "-k",
            panel=STRATEGY,
            metavar="K",
            help="Drafted tokens per round, 1 to 64, if the strategy sets none. (default the pair's, else 4)",
        ),
    ),
    "max_new_tokens": (
        int,
        _option("--max-new-tokens", panel=SAMPLING, metavar="N", help="Longest answer. (default the pair's, else 64)"),
    ),
    "temperature": (
        float,
        _option("--temperature", panel=SAMPLING, metavar="T", help="0 is greedy. (default the pair's, else 1)"),
    ),
    "top_k": (
        int,
        _option("--top-k", panel=SAMPLING, metavar="N", help="Keep the N most likely tokens; 0 is off. (default 0)"),
    ),
    "top_p": (
        float,
        _option(
            "--top-p", panel=SAMPLING, metavar="P", help="Keep the smallest set of this mass; 1 is off. (default 1)"
        ),
    ),
    "seed": (
        int,
        _option("--seed", panel=SAMPLING, metavar="N", help="Seed of the run's random numbers. (default 0)"),
    ),
    "stop": (
        list[str],
        _option("--stop", panel=SAMPLING, metavar="TEXT", help="End the answer before this text; may be repeated."),
    ),
    "system": (str, _option("--system", panel=PROMPT, metavar="TEXT", help="System prompt for the chat template.")),
    "raw": (bool, _option("--raw/--no-raw", panel=PROMPT, help="No chat template: continue the prompt as it is.")),
    "prompts": (
        str,
        _option(
            "--prompts",
            panel=PROMPT,
            metavar="FILE",
            help="JSONL file, or - for stdin: 'prompt' or 'turns' on each line; or: builtin, mt-bench, spec-bench,"
            " speed-bench.",
            autocompletion=complete.prompts,
        ),
    ),
    "limit": (int, _option("--limit", panel=PROMPT, metavar="N", help="Use only the first N prompts of the file.")),
    "top": (
        int,
        _option(
            "--top",
            panel=OUTPUT,
            metavar="N",
            help="Keep each model's N likeliest tokens, 0 to 20. (default 0; 5 for .html)",
        ),
    ),
    "json": (bool, _option("--json/--no-json", panel=OUTPUT, help="Print one JSON document instead of text.")),
    "output": (str, _option("--output", "-o", panel=OUTPUT, metavar="FILE", help="Also write the result to FILE.")),
    "format": (
        str,
        _option(
            "--format",
            panel=OUTPUT,
            metavar="FORMAT",
            help="Format for -o if its suffix names none; without -o, for stdout.",
        ),
    ),
    "quiet": (bool, _option("--quiet/--no-quiet", "-q", panel=OUTPUT, help="Print only the essential result.")),
    "verbose": (
        bool,
        _option("--verbose/--no-verbose", "-v", panel=OUTPUT, help="Also show rejected tokens and more detail."),
    ),
    "color": (
        str,
        _option(
            "--color",
            panel=OUTPUT,
            metavar="WHEN",
            help="auto, always or never. (default auto)",
            autocompletion=complete.colors,
        ),
    ),
}
ON_BY_DEFAULT = frozenset({"cuda_graphs"})
"""Switches that help shows in their negative form; for all others the negative works too, but is not shown."""


PAIR = ("config", "draft", "target")
"""Options that select the models; all others are settings."""
LOADING = (*PAIR, "device", "dtype", "threads", "cuda_graphs", "compile", "offline")
"""Options that determine which pair is loaded, and how."""


@dataclass(frozen=True)
class Flags:
    """What the user gave on the command line."""

    given: Settings
    config: str | None = None
    draft: str | None = None
    target: str | None = None


def with_shared(
    *keys: str, folder: bool = False, written: Sequence[str] = (), **helps: str
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command the named shared options (all of them if none is named), passed on as `flags`.

    `written` are the formats of its `output`; `folder` marks that as a folder, and `helps` replaces the shared help
    text of an option for this command.
    """
    option_keys: Sequence[str] = keys or tuple(SHARED)

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [parameter for name, parameter in own.items() if name != "flags"]
        for key in option_keys:
            kind, option = SHARED[key]
            if key == "output" and written:
                helps[key] = formats.help_of(written)
            if key == "format" and written:
                option = copy.copy(option)
                option.autocompletion = complete.one_of(written)
            if key in helps:
                option = copy.copy(option)
                option.help = helps[key]
                option.metavar = "FOLDER" if folder and key == "output" else option.metavar
            parameters.append(
                inspect.Parameter(
                    key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
                )
            )

        @functools.wraps(command)
        def wrapper(**values: Any) -> None:
            from cascli.settings import checked

            shared = {key: values.pop(key) for key in option_keys}
            models = {key: shared.pop(key) for key in PAIR if key in shared}
            given = {key: value for key, value in shared.items() if value not in (None, [])}
            flags = Flags(checked(given, spell=flag_name), **models)
            command(**values, flags=flags)

        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapper

    return decorate


def flag_name(key: str) -> str:
    """The command-line spelling of a setting."""
    return "--" + key.replace("_", "-")


def require_option(values: str, panel: str | None = None) -> Any:
    """The option `--require`; `values` lists what it takes."""
    help_ = f"Exit 1 unless every strategy but target meets this: {values}; may be repeated."
    return typer.Option("--require", metavar="WHAT", help=help_, rich_help_panel=panel)


def batch_size_option(when: str) -> Any:
    """The option `--batch-size`; `when` states what it applies to."""
    help_ = f"Answers decoded together, {when}: times are then throughput. (default 1)"
    return typer.Option("--batch-size", min=1, metavar="B", help=help_, show_default=False)
