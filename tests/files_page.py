"""Fill the tables of docs/files.md from the code: `python -m tests.files_page` (`--check` only looks).

Columns come from `cascli.analysis.columns`; the fields of each JSON document from its pydantic model, with what the
docstring behind a field says of it.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from cascli.analysis.bench import Bench
from cascli.analysis.columns import COLUMNS
from cascli.analysis.comparison import Comparison
from cascli.audit.report import Audit
from cascli.sweep.plan import SweepPlan
from cascli.sweep.records import Header, Record
from cascli.sweep.rule_estimate import RuleCurves
from cascli.sweep.table import SweepTable
from cascli.trace import Run, Runs

PAGE = Path(__file__).parent.parent / "docs" / "files.md"
DOCUMENTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`generate --json`, and a line of its jsonl", Run),
    ("`generate --json` of several prompts", Runs),
    ("`compare --json`", Comparison),
    ("`bench --json`", Bench),
    ("`verify --json`", Audit),
    ("a sweep's `sweep.json`", Header),
    ("a line of a sweep's `records.jsonl`", Record),
    ("`sweep --json`", SweepTable),
    ("`sweep --rule-curves --json`", RuleCurves),
)
ELSEWHERE = (SweepPlan,)
"""Models that another page explains."""


def parts(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A model and all models in its fields, each once, in the order in which they are met."""
    found: list[type[BaseModel]] = []

    def visit(model: type[BaseModel]) -> None:
        if model in found or model in ELSEWHERE:
            return
        found.append(model)
        for field in model.model_fields.values():
            for inner in models_in(field.annotation):
                visit(inner)

    visit(kind)
    return found


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, however deep."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def said(model: type[BaseModel]) -> dict[str, str]:
    """What the docstrings behind a model's fields, and its computed fields, say of them."""
    texts: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not (issubclass(base, BaseModel) and base.__module__.startswith("cascli.")):
            continue
        [node] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(node, ast.ClassDef)
        for each, after in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and isinstance(after, ast.Expr):
                texts[each.target.id] = ast.literal_eval(after.value)
    for name, field in model.model_computed_fields.items():
        texts[name] = (field.wrapped_property.__doc__ or "").strip()
    return {name: " ".join(text.split()) for name, text in texts.items()}


def type_of(annotation: Any) -> str:
    """An annotation as JSON has it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    if "Literal" in text and "cascli." not in text.split("Literal")[0]:
        return " or ".join(f'"{value}"' if value is not None else "null" for value in literals(annotation))
    text = re.sub(r"[a-z_.]*\.([A-Z]\w*)", r"\1", text)
    return text.replace("NoneType", "null").replace("None", "null").replace("str", "text").replace(" | ", " or ")


def literals(annotation: Any) -> Iterator[Any]:
    """The values of a Literal, and null if it is optional."""
    for each in get_args(annotation):
        if each is type(None):
            yield None
        elif get_args(each):
            yield from literals(each)
        else:
            yield each


def table_of(model: type[BaseModel]) -> str:
    """The fields of a model."""
    texts = said(model)
    lines = ["| field | holds | |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        lines.append(f"| `{field.alias or name}` | {cell(type_of(field.annotation))} | {cell(texts.get(name, ''))} |")
    for name, computed in model.model_computed_fields.items():
        lines.append(f"| `{name}` | {cell(type_of(computed.return_type))} | {cell(texts[name])} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """A text in a Markdown table."""
    return text.replace("|", "\\|")


def documents() -> str:
    """All documents and their parts; a part of several is told once."""
    told: set[type[BaseModel]] = set()
    lines: list[str] = []
    for what, document in DOCUMENTS:
        for model in parts(document):
            if model in told:
                continue
            told.add(model)
            heading = f"### {what}" if model is document else f"#### {model.__name__}"
            doc = " ".join((model.__doc__ or "").split())
            lines += [heading, "", doc, "", table_of(model), ""]
    return "\n".join(lines).strip()


def columns() -> str:
    """All columns, and in whose tables they are."""
    kinds = ("compare", "sweep", "curves", "bench", "verify")
    head = " | ".join(kinds)
    lines = [f"| column | holds | {head} | |", f"| --- | --- |{' :-: |' * len(kinds)} --- |"]
    for column in COLUMNS:
        marks = " | ".join("x" if kind in column.kinds else "" for kind in kinds)
        lines.append(f"| `{column.name}` | {type_of(column.type)} | {marks} | {column.meaning} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """The page with its tables as they should be."""
    for name, content in (("columns", columns()), ("documents", documents())):
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        assert start and end, f"docs/files.md has no place for {name}"
        text = f"{before}{start}{content}\n{end}{after}"
    return text


def main() -> None:
    """Write the page, or with `--check` fail if it is not current."""
    text = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv[1:]:
        if text != page(text):
            sys.exit("docs/files.md: is not what the code says; run make docs")
    else:
        PAGE.write_text(page(text), encoding="utf-8")


if __name__ == "__main__":
    main()
