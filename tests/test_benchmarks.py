from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import accuracy, gpu, llama_cpp, peers, report
from cascli import load_pair
from tests.pairs import pair


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair file whose models lie in folders, as those do that transformers can load beside cascli."""
    folder = tmp_path_factory.mktemp("pair")
    loaded = load_pair(pair(257))  # as many as the tokenizer has: transformers does not mask the rest
    lines = ["name: saved"]
    for role in ("draft", "target"):
        model = getattr(loaded, role).model
        model.save_pretrained(folder / role)
        loaded.tokenizer.save_pretrained(folder / role)
        lines += [f"{role}:", f"  source: {{path: {folder / role}}}"]
    (folder / "pair.yaml").write_text("\n".join(lines) + "\n")
    return folder / "pair.yaml"


@pytest.fixture(scope="module")
def document(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("results") / "peers.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks/peers.py", "-c", "saved"])
        peers.main(["-c", str(saved), "--prompts", "2", "--max-new-tokens", "8", "-k", "2", "3", "-o", str(output)])
    return output


def test_peers_are_measured_on_the_same_tokens(document: Path) -> None:
    found = json.loads(document.read_text())
    assert [row["name"] for row in found["rows"]] == [
        "transformers generate (float32)",
        "transformers assisted k=2 (float32)",
        "transformers assisted k=3 (float32)",
        "cascli target (float32)",
        "cascli draft (float32)",
        "cascli speculative:k=2 (float32)",
        "cascli speculative:k=3 (float32)",
    ]
    greedy = [row for row in found["rows"] if "draft" not in row["name"]]
    assert all(row["tokens"] == 16 and row["same_tokens_as_cascli_target"] == 2 for row in greedy)
    assert found["rows"][0]["ratio_to_first"]["median"] == 1.0
    assert [each["k"] for each in found["predictions"]] == [2, 3]
    assert found["command"] == "python -m benchmarks.peers -c saved"
    assert found["versions"].keys() == {"python", "cascli", "torch", "transformers"}


def test_last_line_is_the_document(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers.main(["-c", str(saved), "--prompts", "1", "--max-new-tokens", "4", "-k", "2", "--no-transformers"])
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["schema"] == "cascli.peers/1"
    assert "prompt 1/1" in err


def test_report_is_made_from_the_files(document: Path) -> None:
    text = report.peers_table([document])
    assert "| transformers generate (float32) |" in text
    assert "k = 2" in text and "python -m benchmarks.peers -c saved" in text


def test_prompts_are_of_all_kinds() -> None:
    assert len(set(peers.spread(6))) == 6
    assert len(peers.spread(100)) == 30


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_llama_cpp_programs_are_read(tmp_path: Path) -> None:
    bench = script(tmp_path / "llama-bench", """echo '[{"avg_ts": 12.5, "n_gen": 64}]'\n""")
    assert llama_cpp.target_speed(bench, Path("m.gguf"), 2, 64) == 12.5
    report = "decoded   65 tokens in    6.500 seconds, speed:   10.000 t/s\\nn_drafted = 50\\nn_accept  = 30\\n"
    program = script(tmp_path / "llama-speculative", f"printf '{report}' >&2\n")
    found = llama_cpp.speculative_speed(program, Path("t"), Path("d"), 2, 4, ["a", "b"], 64)
    assert found == {"tokens_per_second": 10.0, "acceptance": 0.6}
    silent = script(tmp_path / "silent", "echo nothing\n")
    with pytest.raises(ValueError, match="printed no speed"):
        llama_cpp.speculative_speed(silent, Path("t"), Path("d"), 2, 4, ["a"], 64)


def test_llama_cpp_needs_its_models(saved: Path) -> None:
    with pytest.raises(SystemExit, match="--gguf"):
        peers.main(["-c", str(saved), "--llama-bench", "x"])


def test_a_precision_is_compared_along_the_reference(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-c", str(saved), "--limit", "2", "--max-new-tokens", "6"]
    accuracy.main([*arguments, "--dtypes", "float32", "int8"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert list(rows) == ["target float32", "draft float32", "target int8", "draft int8"]
    same, rounded = rows["target float32"], rows["target int8"]
    assert same["tokens"] == 12 and same["top1_agreement"] == 1 and same["mean_tv"] < 1e-6
    assert same["perplexity_ratio"] == pytest.approx(1)
    assert 0 < rounded["mean_tv"] < 0.2 and rounded["mean_kl"] > 0


def test_report_has_accuracy(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "accuracy.json"
    accuracy.main(["-c", str(saved), "--limit", "1", "--max-new-tokens", "4", "--dtypes", "int8", "-o", str(file)])
    assert "| target int8 |" in report.accuracy_table([file])


@pytest.mark.slow
def test_the_gpu_benchmark_runs_through_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its figures mean nothing here; that it ends, with everything in its place, does."""
    out = tmp_path / "gpu.json"
    gpu.main(
        [
            *("--device", "cpu", "--dtype", "float32", "--shrink", "32", "--tokens", "8", "--repeats", "1"),
            *("--context", "16", "--pairs", "0", "--no-tests", "-o", str(out)),
        ]
    )
    document = json.loads(out.read_text())
    [found] = document["pairs"]
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["profiles"][0]["c"] > 0 and set(found["profiles"][0]["v"]) == {str(n) for n in range(1, 10)}
    assert [each["chosen_acceptance"] for each in found["speculation"]] == [0.6, 0.8, 0.9]
    assert all(each["ratio_to_assisted_at_this_acceptance"] > 0 for each in found["speculation"])
    assert found["transformers"]["assisted_seconds_per_round"] > 0
    assert all(each["outside_the_models"] < 1 for each in found["speculation"])
    assert gpu._rounds(gpu.arguments(["--pairs", "0"]))[1][1] is True  # on a GPU, compiled steps come after


def test_a_pair_that_fails_does_not_cost_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: dict, options: object, compiled: bool) -> dict:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(gpu, "of_pair", fail)
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--no-tests", "-o", str(out)])
    found = json.loads(out.read_text())["pairs"]
    assert [each["error"] for each in found] == ["RuntimeError: out of memory"] * len(gpu.PAIRS)
