"""docs/architecture.md against the tree."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = (ROOT / "docs" / "architecture.md").read_text().split("```")[3]
MODULES = [path.relative_to(ROOT / "cascli") for path in (ROOT / "cascli").rglob("[!_]*.py")]


def entries() -> dict[str, set[str]]:
    """The words of each folder's entry; those of the modules beside them are under the empty name."""
    words: dict[str, set[str]] = {"": set()}
    folder = ""
    for line in BLOCK.partition("\nconfigs/")[0].splitlines():
        named = re.match(r"  (\w+)/ ", line)
        folder = named[1] if named else folder
        words.setdefault(folder, set()).update(re.findall(r"\w+", line))
    return words


def is_found_by_name(path: Path) -> bool:
    """Rules and commands are one file each, found by their names, and not listed."""
    docstring = ast.get_docstring(ast.parse((ROOT / "cascli" / path).read_text())) or ""
    return (path.parts[0] == "rules" and path.stem != "base") or docstring.startswith("cascli ")


def test_every_module_is_in_its_folders_entry() -> None:
    named = entries()
    missing = [
        str(path)
        for path in MODULES
        if path.stem not in named["" if len(path.parts) == 1 else path.parts[0]] and not is_found_by_name(path)
    ]
    assert missing == []


def test_no_module_is_named_that_is_gone() -> None:
    known = {part.removesuffix(".py") for path in MODULES for part in path.parts}
    compound = {word for words in entries().values() for word in words if "_" in word.strip("_")}
    assert compound - known == set()
