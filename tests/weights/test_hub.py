"""Hub sources: cached files count only if complete, and refusals say what to do."""

import hashlib
import json
import logging
import shutil
import warnings
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors

from cascli.config import HubSource
from cascli.errors import RunError
from cascli.weights.hub import changed
from cascli.weights.store import disk_bytes, locate, pull

SOURCE = HubSource(hub="some/model", revision="v1")


def refused(kind, status):
    response = SimpleNamespace(status_code=status, headers={}, request=None)
    return kind(f"{status} Client Error.\nmore", response=response)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake snapshot_download that returns a folder or raises an error, and records its calls."""
    fake = SimpleNamespace(folder=tmp_path / "snapshot", online=None, offline=None, calls=[])
    fake.folder.mkdir()

    def snapshot_download(**arguments):
        fake.calls.append(arguments)
        error = fake.offline if arguments.get("local_files_only") else fake.online
        if error is not None:
            raise error
        return str(fake.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return fake


def a_model(folder, shards=()):
    (folder / "config.json").write_text("{}")
    if not shards:
        (folder / "model.safetensors").write_bytes(b"12345678")
        return
    index = {"weight_map": {f"layer{i}": name for i, name in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in shards:
        (folder / name).write_bytes(b"1234")


def test_a_cached_model_is_found_without_a_network(hub):
    a_model(hub.folder)
    assert locate(SOURCE) == pull(SOURCE, offline=True) == hub.folder
    assert disk_bytes(SOURCE) == 10
    assert all(call["local_files_only"] for call in hub.calls)
    assert all((call["repo_id"], call["revision"]) == ("some/model", "v1") for call in hub.calls)


def test_a_model_with_a_missing_shard_counts_as_absent(hub):
    a_model(hub.folder, ["a.safetensors", "b.safetensors"])
    assert locate(SOURCE) == hub.folder
    (hub.folder / "b.safetensors").unlink()
    assert locate(SOURCE) is None
    (hub.folder / "model.safetensors.index.json").write_text("[]")
    assert locate(SOURCE) is None


def test_pull_downloads_only_what_a_model_needs(hub):
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    a_model(hub.folder)
    assert pull(SOURCE) == hub.folder
    assert "*.safetensors" in hub.calls[-1]["allow_patterns"]
    assert not any("bin" in pattern or "gguf" in pattern for pattern in hub.calls[-1]["allow_patterns"])


def test_pull_reports_bytes_and_draws_nothing(hub, capsys):
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    a_model(hub.folder)
    seen = []
    pull(SOURCE, lambda *step: seen.append(step))
    bar_class = hub.calls[-1]["tqdm_class"]
    files = bar_class(desc="Fetching 2 files", total=2)
    written = bar_class(name="huggingface_hub.snapshot_download", total=0, unit="B")
    files.update(1)
    written.total += 30
    for count in (10, 20):
        written.update(count)
        written.refresh()
    written.set_description("done")
    written.close()
    assert seen == [("download", 10, 30), ("download", 30, 30)]
    assert capsys.readouterr().err == ""


class _Broken(Exception):
    """An error from the transport library."""


_Broken.__module__ = "httpx._exceptions"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (refused(errors.GatedRepoError, 403), r"gated\.\nAccept its licence on .*/some/model, run 'hf auth login'"),
        (refused(errors.RepositoryNotFoundError, 404), "no such repository, or it is private.* 'hf auth login'"),
        (refused(errors.RevisionNotFoundError, 404), "no revision 'v1'"),
        (refused(errors.HfHubHTTPError, 401), r"refused access \(401\)\. Log in with 'hf auth login'"),
        (refused(errors.HfHubHTTPError, 500), r"answered with an error: 500 Client Error\.\nTry again later"),
        (errors.LocalEntryNotFoundError("x"), r"cannot be reached .*\nRun 'hf download some/model --revision v1'"),
        (errors.HFValidationError("Repo id must be\nmore"), "Repo id must be$"),
        (
            _Broken("reset by peer"),
            "the connection to the hub broke: reset by peer\nTry again: complete files are kept",
        ),
        (OSError("Consistency check failed: file should be"), "another length than the hub says it has.\nTry again"),
        (OSError(28, "No space left on device"), "(?s)not enough disk space.*set HF_HOME to a folder"),
        (PermissionError(13, "Permission denied"), "(?s)cannot be written.*Set HF_HOME to a folder"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_hub_errors_state_what_to_do(hub, error, message):
    hub.offline, hub.online = errors.LocalEntryNotFoundError("not cached"), error
    with pytest.raises(RunError, match=message) as caught:
        pull(SOURCE)
    assert len(str(caught.value).splitlines()) <= 2


def test_other_errors_are_not_hidden(hub):
    hub.offline, hub.online = errors.LocalEntryNotFoundError("not cached"), ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        pull(SOURCE)


def test_offline_says_what_to_run(hub):
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    with pytest.raises(RunError, match="cascli pull"):
        pull(SOURCE, offline=True)
    assert len(hub.calls) == 1


def test_a_repository_without_safetensors_is_refused(hub):
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    with pytest.raises(RunError, match=r"no config\.json with safetensors weights"):
        pull(SOURCE)


def test_a_name_that_cannot_be_a_repository_is_refused(hub):
    hub.offline = errors.HFValidationError("Repo id must be in the form 'repo_name'")
    with pytest.raises(RunError, match="Repo id must be"):
        locate(HubSource(hub="a" * 200))


def test_signatures_and_passwords_in_addresses_are_not_shown(hub, monkeypatch):
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    signed = "500 Error for url: https://cdn.example/big-1.safetensors?X-Amz-Signature=SECRET\nmore"
    hub.online = errors.HfHubHTTPError(signed, response=SimpleNamespace(status_code=500, headers={}, request=None))
    with pytest.raises(RunError, match=r"https://cdn\.example/big-1\.safetensors\nTry again"):
        pull(SOURCE)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "https://user:SECRET@mirror.example")
    hub.online = refused(errors.GatedRepoError, 403)
    with pytest.raises(RunError, match=r"licence on https://mirror\.example/some/model, run"):
        pull(SOURCE)


def test_the_hubs_library_prints_nothing_of_its_own(hub, monkeypatch, caplog, recwarn):
    """Its log has a line for every retry, with signed addresses."""
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    a_model(hub.folder)
    given = huggingface_hub.snapshot_download

    def loud(**arguments):
        logging.getLogger("huggingface_hub.utils").warning("retrying")
        warnings.warn("not enough space", UserWarning, stacklevel=2)
        return given(**arguments)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", loud)
    pull(SOURCE)
    assert len(caplog.records) == len(recwarn) == 1  # of the look into the cache, which never retries


def test_changed_files_are_found_by_their_names_in_the_cache(tmp_path):
    """Large files are named by a sha256, others by git's hash; a cache without links has no such names."""
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    folder.mkdir()
    names = {
        "model.safetensors": hashlib.sha256(b"123").hexdigest(),
        "config.json": hashlib.sha1(b"blob 2\0{}").hexdigest(),
    }
    for (file, name), data in zip(names.items(), (b"123", b"{}"), strict=True):
        (blobs / name).write_bytes(data)
        (folder / file).symlink_to(blobs / name)
    assert changed(folder) == []
    (blobs / names["config.json"]).write_bytes(b"[]")
    assert changed(folder) == ["config.json"]
    (blobs / names["model.safetensors"]).write_bytes(b"124")
    assert changed(folder) == ["config.json", "model.safetensors"]
    (blobs / names["config.json"]).unlink()
    assert changed(folder) == ["config.json", "model.safetensors"]
    (blobs / names["config.json"]).write_bytes(b"{}")
    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    assert changed(copied) is None


def test_weights_in_a_second_format_are_not_fetched(hub):
    """Mistral's repositories hold all weights twice."""
    hub.offline = errors.LocalEntryNotFoundError("not cached")
    a_model(hub.folder)
    pull(SOURCE)
    assert "consolidated*" in hub.calls[-1]["ignore_patterns"]
