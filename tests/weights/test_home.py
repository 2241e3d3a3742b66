"""Where the cache is on each platform."""

from pathlib import Path

import pytest

from cascli.weights import home as module
from cascli.weights.home import cache_home


def test_cascli_home_wins(tmp_path, monkeypatch):
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "elsewhere"))
    assert cache_home() == tmp_path / "elsewhere"
    monkeypatch.setenv("CASCLI_HOME", "~/weights")
    assert cache_home() == Path.home() / "weights"


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {}, Path.home() / ".cache" / "cascli"),
        ("linux", {"XDG_CACHE_HOME": "/x/cache"}, Path("/x/cache/cascli")),
        ("linux", {"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "cascli"),
        ("darwin", {"XDG_CACHE_HOME": "/x/cache"}, Path.home() / "Library" / "Caches" / "cascli"),
        ("win32", {"LOCALAPPDATA": "/local"}, Path("/local/cascli")),
        ("win32", {}, Path.home() / "AppData" / "Local" / "cascli"),
    ],
)
def test_platform_convention(platform, variables, expected, monkeypatch):
    for name in ("CASCLI_HOME", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module.sys, "platform", platform)
    assert cache_home() == expected
