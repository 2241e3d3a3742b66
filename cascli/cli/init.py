"""cascli init: a pair file for two models of your own, after checking that they go together."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascli.cli import common
from cascli.cli.options import Flags, with_shared
from cascli.errors import UsageError

if TYPE_CHECKING:
    from cascli.config import PairConfig
    from cascli.models.survey import PairSurvey

NAME = "init"
EXAMPLE = """\
cascli init my-pair.yaml --draft ./small --target ./large
cascli init qwen.yaml --draft Qwen/Qwen3-0.6B --target Qwen/Qwen3-8B
"""


@with_shared("draft", "target", "offline", "quiet", "color", target="Target model, as for --draft.")
def command(
    file: Annotated[Path, typer.Argument(help="The pair file to write (YAML).")],
    *,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    flags: Flags,
) -> None:
    """Write a commented pair file for two models, after checking their tokenizers, sizes and memory needs."""
    from cascli import files
    from cascli.config import load_config

    _check(file, force)
    config = common.requested_pair(flags, models_only=True)
    if config is None:
        raise UsageError(
            "init writes a file for your own models: give --draft and --target (or --target alone).\n"
            f"For example: cascli init {file} --draft ./small --target ./large"
        )
    plan = common.plan(flags, config)
    for note in plan.check_sources():
        plan.screen.note(note)
    text = pair_file(config, _survey(plan), file)
    files.write(file, text)
    load_config(file)
    plan.screen.note(f"wrote {file}")
    plan.screen.note(f'next: cascli compare "Who is Buzz Aldrin?" -c {shlex.quote(str(file))}')


def _check(file: Path, force: bool) -> None:
    """Reject a path that cannot work, before anything is fetched."""
    from cascli.render.export import check_suffix

    check_suffix(file, (".yaml", ".yml"), named=f"FILE {file}")
    if file.exists() and not force:
        raise UsageError(f"{file}: already exists; choose another name, or use --force.")


def _survey(plan: common.Plan) -> PairSurvey:
    from cascli.cli.progress import Progress

    with Progress(plan.screen, "importing transformers") as progress:
        from cascli.models.survey import survey

        common.quiet_libraries()
        return survey(plan.config, offline=plan.settings.offline, report=progress.report, on_stage=progress.stage)


def pair_file(config: PairConfig, survey: PairSurvey, file: Path) -> str:
    """The content of a pair file that is stored at `file`."""
    from cascli.yaml_files import yaml_text

    roles = "\n".join(_role(role, config, survey, file) for role in config.models)
    shared = f"{survey.vocab:,} token ids are shared" if len(config.models) > 1 else f"{survey.vocab:,} token ids"
    if survey.shared is not None:
        shared = (
            f"The tokenizers differ: the draft can produce {survey.shared:,} of the target's {survey.vocab:,} tokens"
        )
    chat = "has a chat template" if survey.chat else "has no chat template: prompts are continued as they are"
    context = "" if survey.context is None else f" Texts of up to {survey.context:,} tokens."
    sizes = ", ".join(f"{_gb(survey.weight_bytes(dtype))} in {dtype}" for dtype in survey.precisions)
    on_cpu = " (int8 on a CPU only)" if "int8" in survey.precisions else ""
    return f"""# A pair for cascli; its keys are explained in configs/pair.schema.json and docs/pairs.md.
# {shared}; the target {chat}.{context}
# The weights take {sizes}{on_cpu}.
name: {yaml_text(file.stem)}
{roles}
defaults:  # any flag, by its long name with underscores; flags and CASCLI_... override it
  max_new_tokens: 64
  # temperature: 0.0
  # num_speculative_tokens: 4
  # system: You are a helpful assistant.
about:
  memory_gb: {survey.auto_bytes() / 1e9:.2g}  # of weights, with dtype: auto on a CPU
"""


def _role(role: str, config: PairConfig, survey: PairSurvey, file: Path) -> str:
    from cascli.yaml_files import yaml_text

    model, size = config.models[role], survey.models[role]
    source = model.source.model_dump()
    if "path" in source:
        source["path"] = _as_seen_from(file, source["path"])
    keys = ", ".join(f"{key}: {yaml_text(value)}" for key, value in source.items())
    source_line = f"source: {{{keys}}}"
    if role == "draft" and config.by_head:
        source_line = f"eagle3: {yaml_text('path:' + source['path'] if 'path' in source else str(model.source))}"
    return f"""{role}:  # {size.kind}, {size.layers} layers, {_weights(size.weights)} weights
  {source_line}
  dtype: auto  # or float32, bfloat16, float16, int8"""


def _as_seen_from(file: Path, path: str) -> str:
    """A path relative to the file's folder, unless that would climb more than one level up."""
    relative = os.path.relpath(path, file.absolute().parent)
    return path if relative.startswith(os.path.join("..", "..")) else relative  # noqa: PTH118 - strings, not paths


def _weights(count: int) -> str:
    unit, size = next((each for each in (("B", 1e9), ("M", 1e6)) if count >= each[1]), ("K", 1e3))
    return f"{count / size:.3g}{unit}"


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
