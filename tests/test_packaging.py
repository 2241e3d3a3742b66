"""What pyproject.toml says to pip, against what cascli imports and where its suite ran."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Builds of torch for CUDA bring it; no kernel is imported without one.
COMES_WITH_TORCH = {"triton"}


def declared() -> set[str]:
    """The distributions a user can ask for: the dependencies and every extra but that of developers."""
    extras = [lines for name, lines in PROJECT["optional-dependencies"].items() if name != "dev"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def modules_of(node: ast.AST) -> list[str]:
    """The modules that a node imports, also by `import_module` with a name written out."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module or ""]
    if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "find_spec"):
        return [name.value for name in node.args[:1] if isinstance(name, ast.Constant)]
    return []


def imported(folder: Path) -> dict[str, str]:
    """Packages from outside the standard library, each with a place that imports it."""
    return {
        module.partition(".")[0]: f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        for module in modules_of(node)
        if module.partition(".")[0] not in {"cascli", *sys.stdlib_module_names}
    }


def test_imports_of_every_form_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "module.py").write_text(
        "import a.b, json\nfrom c.d import e\nfrom . import f\nfrom cascli import g\n"
        "def late():\n    import h as i\n    importlib.import_module('j.k')\n    import_module(name)\n"
        "    find_spec('m')\n"
    )
    assert imported(tmp_path) == {
        "a": "module.py:1", "c": "module.py:2", "h": "module.py:6", "j": "module.py:7", "m": "module.py:9"
    }  # fmt: skip


def test_every_import_is_of_a_declared_distribution() -> None:
    distributions = packages_distributions()
    known = declared() | COMES_WITH_TORCH
    undeclared = {
        name: where
        for name, where in imported(ROOT / "cascli").items()
        if not known & {canonicalize_name(one) for one in distributions.get(name, [name])}
    }
    assert undeclared == {}


def test_extras_that_messages_and_docs_name_exist() -> None:
    texts = [*(ROOT / "cascli").rglob("*.py"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
    named = {
        extra
        for path in texts
        for extras in re.findall(r"cascli\[([\w,-]+)\]", path.read_text())
        for extra in extras.split(",")
    }
    assert named and named <= set(PROJECT["optional-dependencies"])


def test_python_versions_are_those_that_the_suite_ran_on() -> None:
    prefix = "Programming Language :: Python :: "
    classified = {line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)}
    limits = (ROOT / "docs" / "limits.md").read_text()
    assert classified == set(re.findall(r"Python (3\.\d+)", limits))
    workflow = ROOT / ".github" / "workflows" / "test.yml"
    if workflow.exists():  # no part of the source distribution
        matrix = yaml.safe_load(workflow.read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
        assert set(matrix) == classified
