from __future__ import annotations

import dataclasses
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks import (
    accuracy,
    compare_engines,
    engines,
    gpu,
    gpu_job,
    gpu_kernels,
    gpu_pair,
    gpu_table,
    gpu_tests,
    gpu_work,
    llama_cpp,
    needs,
    report,
    shapes,
    transformers_baseline,
)
from cascli import Pair, load_pair
from cascli.jobs.profile import blocks_for
from cascli.models.gpu.fused_norm import FusedNorm, use_fused_norms
from cascli.models.gpu.fused_rotation import use_fused_rotation
from tests.pairs import ARCHITECTURES, pair


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair file whose models are in folders, so that transformers can load them as well."""
    folder = tmp_path_factory.mktemp("pair")
    loaded = load_pair(pair(257))  # the tokenizer's size: transformers does not mask the rest
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
    output = tmp_path_factory.mktemp("results") / "engines.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["benchmarks/compare_engines.py", "-c", "saved"])
        compare_engines.main(
            ["-c", str(saved), "--prompts", "2", "--max-new-tokens", "8", "-k", "2", "3", "-o", str(output)]
        )
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
    assert found["command"] == "python -m benchmarks.compare_engines -c saved"
    assert found["versions"].keys() == {"python", "cascli", "torch", "transformers"}


def test_last_line_is_the_document(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare_engines.main(["-c", str(saved), "--prompts", "1", "--max-new-tokens", "4", "-k", "2", "--no-transformers"])
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["schema"] == "cascli.engines/1"
    assert "prompt 1/1" in err


def test_report_is_made_from_the_files(document: Path) -> None:
    text = report.engines_table([document])
    assert "| transformers generate (float32) |" in text
    assert "k = 2" in text and "python -m benchmarks.compare_engines -c saved" in text


def test_prompts_cover_all_kinds() -> None:
    assert len(set(compare_engines.spread(6))) == 6
    assert len(compare_engines.spread(100)) == 30


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def test_output_of_llama_cpp_programs_is_parsed(tmp_path: Path) -> None:
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
        compare_engines.main(["-c", str(saved), "--llama-bench", "x"])


def test_precisions_are_compared_along_the_answers_of_the_reference(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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


TINY = ["--device", "cpu", "--dtype", "float32", "--shrink", "32", "--tokens", "8", "--repeats", "1", "--context", "16"]


@pytest.mark.slow
def test_the_gpu_benchmark_completes_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures mean nothing here; what matters is that it finishes with everything in place."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the other tests
    out = tmp_path / "gpu.json"
    gpu.main([*TINY, "--pairs", "0", "--no-tests", "-o", str(out)])
    document = json.loads(out.read_text())
    [found] = document["pairs"]
    assert document == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["device"] == "cpu" and not found["left_out"] and not found["failed"] and "error" not in found
    assert found["profiles"][0]["c"] > 0 and set(found["profiles"][0]["v"]) == {str(n) for n in blocks_for([4], None)}
    assert [each["chosen_acceptance"] for each in found["speculation"]] == [0.6, 0.8, 0.9]
    assert all(each["ratio_to_assisted_at_this_acceptance"] > 0 for each in found["speculation"])
    assert found["transformers"]["assisted_seconds_per_round"] > 0
    assert all(each["outside_the_models"] < 1 for each in found["speculation"])
    assert all(each["rounds"] > 0 and each["kernels"] == 0 for each in found["work"].values())
    assert found["peak_memory_bytes"] > 0 and found["graphs"]["target"] is None
    assert len(gpu_table.line_of(found)) == len(gpu_table.HEADINGS)


def test_the_benchmark_of_kernels_completes_on_a_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kernels.json"
    tiny = ["--device", "cpu", "--dtype", "float32", "--shrink", "128", "--rows", "2", "--context", "5"]
    gpu_kernels.main([*tiny, "--models", "gemma2-2b", "-o", str(out)])
    table, _, last = capsys.readouterr().out.rstrip().rpartition("\n")
    document = json.loads(last)
    assert document == json.loads(out.read_text()) and document["left_out"] == []
    rows = {row["kernel"]: row for row in document["rows"]}
    assert all(row["us"] > 0 for row in rows.values()), rows
    assert all(us > 0 for row in rows.values() for us in row.get("tiles_us", {}).values())
    assert sum("torch_us" in row for row in rows.values()) == sum("tiles_us" in row for row in rows.values()) == 5
    [step] = gpu_kernels.steps(document)
    assert step["kernels"] == 8 * 26 + 2  # a norm before the first layer, and the head
    assert f"{step['kernels']} kernels of a step" in table and "verification" in rows

    gpu_kernels.main([*tiny, "--seconds", "-1"])
    assert "no time was left for qwen2.5-7b, 2 rows" in capsys.readouterr().out


def test_kernels_are_timed_with_and_without_dependent_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: it was switched off for `cuda`, while kernels ask for `cuda:0`."""
    from cascli.kernels import early

    device, seen = torch.device("cpu"), list[bool]()
    can = cache(lambda device: device not in early._off)
    monkeypatch.setattr(early, "used", can)
    piece = gpu_kernels.Piece("x", lambda _: seen.append(early.used(device)), 2, 0)
    monkeypatch.setattr(gpu_kernels, "pieces", lambda *_: iter([piece]))
    options = gpu_kernels.arguments(["--device", "cpu"])
    [row] = gpu_kernels.measured("qwen2.5-0.5b", 1, options, device)
    assert seen == [True, False] and early.used(device)
    assert row["us"] > 0 and row["without_pdl_us"] > 0

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert gpu_kernels.numbered(torch.device("cuda")) == torch.device("cuda", 3)
    assert gpu_kernels.numbered(torch.device("cuda", 1)) == torch.device("cuda", 1)
    assert gpu_kernels.numbered(device) == device


def test_the_benchmark_of_kernels_ends_between_kernels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling all tiles may take longer than the time for everything."""
    rows = [{"model": "m", "rows": 1, "kernel": name, "per_step": 1, "bytes": 8, "us": 3.0} for name in ("a", "head")]
    clock = iter([0.0, 0.0, 99.0, 99.0])
    monkeypatch.setattr(gpu_kernels, "measured", lambda *_: iter(rows))
    monkeypatch.setattr(gpu_kernels.time, "monotonic", lambda: next(clock))
    gpu_kernels.main(["--device", "cpu", "--shrink", "128", "--models", "gemma2-2b", "--rows", "1"])
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1])["rows"] == rows[:1]
    assert "no time was left for gemma2-2b, 1 row: what follows a" in out and "of a step take" not in out


def test_a_kernel_that_fails_is_reported_and_the_others_are_timed() -> None:
    def fail(_: int) -> None:
        raise RuntimeError("out of resource: shared memory\nRequired: 300000")

    assert gpu_kernels.attempt(fail, 2, torch.device("cpu")) == "RuntimeError: out of resource: shared memory"
    row = {"model": "m", "rows": 1, "kernel": "head", "per_step": 1, "bytes": 8, "us": 3.0}
    ceilings = {"copy_bytes_per_second": 1e12, "read_bytes_per_second": 1e12, "node_us": 1.0}
    unfinished = row | {"rows": 3, "kernel": "down"}
    document = {"rows": [row, row | {"rows": 2, "us": "failed"}, unfinished], "ceilings": ceilings}
    assert gpu_kernels.steps(document) == [{"model": "m", "rows": 1, "ms": 0.003, "ms_of_bytes": 8e-9, "kernels": 1}]


def tiny_ask(until: float) -> gpu_job.Ask:
    [job] = gpu.planned(gpu.arguments([*TINY, "--pairs", "0"]))
    return dataclasses.replace(job.ask, until=until)


def test_a_late_row_lists_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_pair.Measurement, "_beside", lambda _: pytest.fail("there is no time for this"))
    saved: list[str] = []
    found = gpu_pair.Measurement(tiny_ask(until=0.0), lambda entry: saved.append(json.dumps(entry))).all()
    assert found["left_out"][:2] == ["speculation at 0.8", "transformers"] and len(found["left_out"]) == 6
    assert found["profiles"] and json.loads(saved[-1]) == found
    assert gpu_table.line_of(found)[6:11] == [""] * 5
    [note] = gpu_table.notes_of(found)
    assert note.startswith(f"{found['name']}: no time was left for speculation at 0.8, transformers, ")


def test_a_compiled_row_is_compared_with_what_transformers_compiles() -> None:
    ask = dataclasses.replace(tiny_ask(until=0.0), compiled=True)
    measured = gpu_pair.Measurement(ask, lambda _: None)
    *_, static, target, speculative = measured.all()["left_out"]
    assert static == "transformers with a static cache"
    assert (target, speculative) == ("work of target", "work of speculative:k=4")  # nothing is timed after the profiler
    assert "transformers" not in measured.found["left_out"]
    measured._beside_static()
    found = measured.found | {"speculation": [{"chosen_acceptance": 0.8, **dict.fromkeys(RATES, 2.0)}]}
    rate = found["transformers"]["static_tokens_per_second"]
    cells = dict(zip(gpu_table.HEADINGS, gpu_table.line_of(found), strict=True))
    assert cells["x generate"] == f"{2 / rate:.1f}x" and cells["x assisted"] == ""


RATES = ("measured_speed_up", "predicted_speed_up", "outside_the_models", "target_tokens_per_second")


def test_a_failing_part_does_not_affect_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise TypeError("transformers has changed")

    monkeypatch.setattr(gpu_pair.Measurement, "_beside", fail)
    monkeypatch.setattr(gpu_pair.Measurement, "_work", fail)
    found = gpu_pair.Measurement(tiny_ask(until=math.inf), lambda _: None).all()
    first, *more = found["failed"]["transformers"].splitlines()
    assert first == "TypeError: transformers has changed" and any("in fail" in line for line in more)
    assert len(found["speculation"]) == 3 and found["transformers"] is None
    assert f"{found['name']}: transformers failed: TypeError: transformers has changed" in gpu_table.notes_of(found)


def test_steps_that_fail_do_not_affect_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs then measure the steps that they need; only what the steps alone tell is missing."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCompile with ...")

    monkeypatch.setattr(gpu_pair, "bench", fail)
    monkeypatch.setattr(gpu_pair.Measurement, "_work", lambda *_: None)
    found = gpu_pair.Measurement(tiny_ask(until=math.inf), lambda _: None).all()
    assert list(found["failed"]) == ["steps"] and "in _measure_steps" in found["failed"]["steps"]
    assert len(found["speculation"]) == 3 and found["transformers"] and "profiles" not in found
    assert gpu_table.line_of(found)[:2] == [found["name"], "failed"]
    [note] = gpu_table.notes_of(found)
    assert note.endswith("steps failed: RuntimeError: CUDA error: operation not permitted when stream is capturing")


def test_the_table_says_which_models_ran_without_graphs_or_fused_steps() -> None:
    row = {
        "name": "a with b",
        "compiled": False,
        "profiles": [],
        "why_eager": {"draft": None, "target": "it is spread"},
    }
    row |= {"why_unfused": {"draft": "its activation", "target": None}}
    assert gpu_table.notes_of(row) == [
        "a with b: the target is not captured: it is spread",
        "a with b: the draft uses its own layers: its activation",
    ]


def rows_of(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[dict]:
    """The entries if every row's process runs `script`, with the result's path as its argument."""
    monkeypatch.setattr(gpu_job, "command", lambda _, result: ["-c", script, str(result)])
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--no-tests", "-o", str(out), *more])
    return json.loads(out.read_text())["pairs"]


def test_a_failing_pair_does_not_affect_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of("assert False, 'illegal memory access'", tmp_path, monkeypatch)
    assert len(found) == len(gpu.PAIRS)
    assert all(each["error"].endswith("AssertionError: illegal memory access") for each in found)
    assert [gpu_table.line_of(each)[1] for each in found] == ["failed"] * len(found)


def test_a_process_that_dies_keeps_its_partial_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = 'import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(\'{"device": "H"}\'); os.abort()'
    [found] = rows_of(dying, tmp_path, monkeypatch, "--pairs", "0")
    assert found["device"] == "H" and "Abort" in found["error"]


def test_parts_are_written_while_a_row_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The machine may be taken away in the middle of a row."""
    script = f"""
import json, pathlib, sys, time
result, out = pathlib.Path(sys.argv[1]), pathlib.Path({str(tmp_path / "gpu.json")!r})
new = result.with_suffix(".new")
new.write_text(json.dumps({{"device": "H", "steps": 1.5}}))
new.replace(result)
while not (rows := json.loads(out.read_text())["pairs"]):
    time.sleep(0.05)
new.write_text(json.dumps({{"device": "H", "steps": 1.5, "seen": rows}}))
new.replace(result)
"""
    [found] = rows_of(script, tmp_path, monkeypatch, "--pairs", "0")
    [seen] = found["seen"]
    assert seen["device"] == "H" and seen["steps"] == 1.5 and seen["error"] == gpu_job.UNFINISHED
    assert seen["name"] == found["name"] and "error" not in found
    printed = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [each for each in printed if "steps" in each] == [printed[0]]


def test_a_file_that_cannot_be_written_is_an_error_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_job, "run", lambda *_: pytest.fail("this takes minutes"))
    with pytest.raises(FileNotFoundError):
        gpu.main(["--device", "cpu", "--no-tests", "-o", str(tmp_path / "no folder" / "gpu.json")])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_is_cut_off_leaves_its_results_and_no_process(tmp_path: Path) -> None:
    """As after `timeout`: what was measured is in the file and in the last line, and nothing holds the GPU."""
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", *TINY, "--repeats", "9999", "--pairs", "0", "1", "--no-tests"]
    end = time.monotonic() + 60
    with subprocess.Popen([*command, "-o", out], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
        while (not out.exists() or not json.loads(out.read_text())["pairs"]) and time.monotonic() < end:
            time.sleep(0.2)
        [child] = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        run.send_signal(signal.SIGTERM)
        said, _ = run.communicate()
    assert run.returncode == 128 + signal.SIGTERM and not Path(f"/proc/{child}").exists()
    document = json.loads(out.read_text())
    [row] = document["pairs"]
    assert row["error"] == gpu_job.UNFINISHED and row["load_seconds"] > 0 and document["versions"]["torch"]
    assert json.loads(said.splitlines()[-1]) == document


@pytest.mark.skipif(sys.platform != "linux", reason="Linux can tie a process to its parent")
def test_a_row_ends_with_the_process_that_wanted_it(tmp_path: Path) -> None:
    """Even if that one is killed: as the row is in a session of its own, nobody else would end it."""
    script = f"""
import os, pathlib, signal
from benchmarks.subprocess_runner import Subprocess
child = Subprocess(["-c", "import time; time.sleep(99)"], pathlib.Path({str(tmp_path / "output")!r}))
print(child._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child, end = Path(f"/proc/{int(done.stdout)}"), time.monotonic() + 9
    while child.exists() and "(zombie)" not in (child / "status").read_text() and time.monotonic() < end:
        time.sleep(0.05)
    assert not child.exists() or "(zombie)" in (child / "status").read_text()


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_job, "_LEAST", 0.0)
    monkeypatch.setattr(
        gpu_job, "command", lambda *_: ["-c", "import time; print('so far', flush=True); time.sleep(99)"]
    )
    job = gpu_job.Job(tiny_ask(0.0), seconds=9)
    found = gpu_job.run(job, limit=1.5)
    assert found["skipped"] == "out of time" and found["error"] == "killed after 2 s\nso far"
    assert found["wall_seconds"] < 20


def test_nothing_starts_without_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows_of("raise SystemExit(3)", tmp_path, monkeypatch, "--seconds", "1")
    assert [each["skipped"] for each in found] == ["out of time"] * len(gpu.PAIRS)
    assert all(gpu_table.notes_of(each) == [f"{each['name']}: no time was left"] for each in found)


def test_compiled_rows_are_put_off_if_they_would_displace_others(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = gpu.planned(gpu.arguments([]))
    assert [job.ask.compiled for job in jobs] == [False, True] * len(gpu.PAIRS)
    assert sum(job.seconds for job in jobs if not job.ask.compiled) <= 400
    now, limits = 0.0, []

    def run(job: gpu_job.Job, limit: float, _: gpu_job.Seen) -> dict:
        nonlocal now
        now += min(job.seconds, limit)
        limits.append(limit)
        return {"name": job.ask.name, "compiled": job.ask.compiled}

    monkeypatch.setattr(gpu_job, "run", run)
    monkeypatch.setattr(gpu, "time", SimpleNamespace(monotonic=lambda: now))

    def measured(seconds: float) -> tuple[list[bool], list[gpu_job.Job]]:
        document = {"device": "cuda", "pairs": []}
        waiting = gpu.measure(jobs, now + seconds, document, None, put_off=True)
        return [each["compiled"] for each in document["pairs"]], waiting

    assert measured(400) == ([False] * 5, jobs[1::2])
    spare = 400 - sum(job.seconds for job in jobs if not job.ask.compiled)
    plain = [job.seconds for job in jobs if not job.ask.compiled]
    assert limits == [pytest.approx(seconds + spare) for seconds in plain]
    assert measured(4000) == ([job.ask.compiled for job in jobs], [])


def test_a_compiled_row_that_did_not_fit_is_listed_next_to_its_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later run of that row alone replaces the entry."""
    rows = [{"name": name, "compiled": compiled} for compiled in (False, True) for name in "ab"]
    rows[3]["skipped"] = "out of time"
    added = gpu.in_order([*rows, {"name": "b", "compiled": True, "device": "H"}])
    assert [(row["name"], row["compiled"]) for row in added] == [("a", False), ("a", True), ("b", False), ("b", True)]
    assert added[3]["device"] == "H"
    assert gpu_table.line_of(rows[3])[:2] == ["b (compiled)", "out of time"]


def test_the_page_lists_what_was_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows_of("raise SystemExit(3)", tmp_path, monkeypatch, "--seconds", "1", "--pairs", "0")
    text = report.gpu_table([tmp_path / "gpu.json"])
    name = gpu.PAIRS[0].draft + " with " + gpu.PAIRS[0].target
    assert f"| {name} | out of time |" in text and f"\n- {name}: no time was left" in text


def test_add_keeps_the_rows_already_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{}')"
    first = rows_of(script, tmp_path, monkeypatch, "--pairs", "1")
    both = rows_of(script, tmp_path, monkeypatch, "--pairs", "0", "1", "--add")
    assert [row["name"] for row in both] == [first[0]["name"], gpu.PAIRS[0].draft + " with " + gpu.PAIRS[0].target]
    assert len(rows_of(script, tmp_path, monkeypatch, "--pairs", "0")) == 1


def test_missing_packages_are_named_before_any_import(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"torch": "2.11.0+cu130", "transformers": "5.16.0", "pytest": "9.1"}

    def version(name: str) -> str:
        if name in ("pydantic", "triton"):
            raise PackageNotFoundError(name)
        return there.get(name, "99.0")

    monkeypatch.setattr(needs, "version", version)
    with pytest.raises(SystemExit) as error:
        gpu.main(["--device", "cuda"])
    first, *rest = str(error.value).splitlines()
    assert first == "This Python lacks transformers>=5.17, pydantic>=2.12, triton>=3.6."
    assert "pip install 'transformers>=5.17' 'pydantic>=2.12' 'triton>=3.6'" in rest[0]
    assert "pydantic comes with annotated-types, pydantic-core" in rest[-1]


def test_only_packages_in_use_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(needs, "version", lambda name: asked.append(name) or "99.0")
    needs.check([])
    assert {"torch", "pydantic", "rich"} <= set(asked) and not {"gguf", "triton", "pytest"} & set(asked)


@pytest.mark.skipif(torch.cuda.is_available(), reason="which would compile for minutes")
def test_transformers_with_a_static_cache_writes_the_same(id_pair: Pair) -> None:
    found = transformers_baseline.static_cache_baseline(id_pair, [5, 6, 7], tokens=6, repeats=2)
    assert found["repeats"] == 2 and found["static_tokens_per_second"] > 0
    model = id_pair.target.model
    with transformers_baseline.stock(model):
        plain, static = (
            engines.of_transformers(model, None, None, [], "", static=static).answer([5, 6, 7], 6)
            for static in (False, True)
        )
    assert plain.token_ids == static.token_ids


def test_kernels_and_copies_are_counted_on_the_device() -> None:
    def event(name: str, where: DeviceType = DeviceType.CUDA) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=where, is_user_annotation=False)

    names = ["gemv", "rotate", "Memcpy DtoH (Device -> Pinned)", "Memcpy HtoD (Pageable -> Device)", "Memset (Device)"]
    events = [*map(event, names), event("Memcpy DtoD (Device -> Device)"), event("cudaLaunchKernel", DeviceType.CPU)]
    assert gpu_work.count(events) == {"kernels": 2, "to_host": 1, "from_host": 1}


def test_a_profiler_that_sees_no_graph_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUPTI does not always see the kernels of graphs; zero would be taken for a count."""
    pair = SimpleNamespace(device=torch.device("cuda"))
    counts = iter(
        [Counter(rounds=4), Counter(rounds=36), Counter(rounds=4, kernels=40), Counter(rounds=36, kernels=360)]
    )
    monkeypatch.setattr(gpu_work, "_counted", lambda *_: next(counts))
    with pytest.raises(RuntimeError, match="saw 0 and 0 kernels"):
        gpu_work.work_of(pair, "target", [1])
    assert gpu_work.work_of(pair, "target", [1]) == {"rounds": 32, "kernels": 10, "to_host": 0, "from_host": 0}


@pytest.mark.slow
def test_gpu_tests_are_counted_and_named(tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_one(n): assert n == 1\n"
        "@pytest.mark.skip\ndef test_two(): pass\n"
        "def test_three(): time.sleep(99)\n"
        "def test_on(): import os; os.abort()\n"  # its name is a prefix of another test's
    )
    names = [f"{file}::test_{name}" for name in ("one", "two", "three", "on")]
    found = gpu_tests.run_tests([[name] for name in names], seconds=15)
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 1)
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_one[2]", "test_on"]
    assert [name.rpartition("::")[2] for name in found["out_of_time"]] == ["test_three"]
    assert "assert 2 == 1" in found["output"][f"{file}::test_one"] and found["seconds"] < 40
    assert len(gpu_table.tests_lines(found)) == 4


def test_gpu_tests_leave_out_what_needs_no_gpu() -> None:
    together = gpu_tests.groups()
    names = [name for group in together for name in group]
    assert len(names) == len(set(names)) > 80 and len(together) < 40
    assert all(len({name.partition("::")[0] for name in group}) == 1 for group in together)
    assert any("test_on_cuda.py::test_the_laws_hold_on_the_device" in name for name in names)
    assert not any("compile_for_gpu" in name or "in_decoding" in name for name in names)
    assert [name.partition("::")[2] for name in names[: len(gpu_tests.LONGEST)]] == [*gpu_tests.LONGEST]


@pytest.mark.slow
def test_gpu_tests_take_turns(tmp_path: Path) -> None:
    """Two at a time, in order; tests that got no turn are out of time, like those that were cut off."""
    file = tmp_path / "test_some.py"
    each = "def test_{0}():\n    open(r'{1}/{0}', 'w').close(); time.sleep({2})\n"
    text = "".join(each.format(name, tmp_path, nap) for name, nap in (("a", 0), ("b", 99), ("c", 99), ("d", 0)))
    file.write_text("import time\n" + text)
    found = gpu_tests.run_tests([[f"{file}::test_{name}"] for name in "abcd"], seconds=12, at_once=2)
    assert found["passed"] == 1 and found["failed"] == 0 and not (tmp_path / "d").exists()
    assert [name.rpartition("::")[2] for name in found["out_of_time"]] == ["test_b", "test_c", "test_d"]
    assert (tmp_path / "c").exists()


@pytest.mark.slow
def test_gpu_tests_that_fail_with_others_are_decided_alone(tmp_path: Path) -> None:
    """As where a kernel breaks the context of its process, or ends the process."""
    file = tmp_path / "test_some.py"
    file.write_text(
        "import os, time, pytest\nbroken = []\n"
        "def test_fine(): pass\n"
        "def test_breaks(): broken.append(1); assert not broken\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_victim(n): assert not broken\n"
        "def test_crash(): os.abort()\n"
        "def test_after(): pass\n"
    )
    names = [f"{file}::test_{name}" for name in ("fine", "breaks", "victim", "crash", "after")]
    found = gpu_tests.run_tests([names], seconds=60, at_once=2)
    assert (found["passed"], found["failed"], found["skipped"]) == (4, 2, 0)
    assert [name.rpartition("::")[2] for name in found["failures"]] == ["test_breaks", "test_crash"]
    assert not found["out_of_time"] and {*found["exit_codes"]} == {names[1], names[3]}


@pytest.mark.slow
def test_gpu_tests_that_crash_are_never_counted_as_passed(tmp_path: Path) -> None:
    """In a later case of a function, alone or with others, and when the interpreter ends; text in errors is no test."""
    texts = {
        "later": "@pytest.mark.parametrize('n', [1, 2, 3])\ndef test_later(n): n == 2 and os.abort()\n",
        "ending": "import atexit\ndef test_ending(): atexit.register(os.abort)\n",
        "odd": "def test_odd(): raise RuntimeError('Use it like this::\\n\\n  code')\n",
        "together": "@pytest.mark.parametrize('n', [1, 2])\ndef test_dies(n): n == 2 and os.abort()\n"
        "def test_lives(): pass\n",
    }
    groups = []
    for name, text in texts.items():
        file = tmp_path / f"test_{name}.py"
        file.write_text("import os, pytest\n" + text)
        groups.append([f"{file}::{each}" for each in re.findall(r"def (test_\w+)", text)])
    found = gpu_tests.run_tests(groups, seconds=90, at_once=2)
    broken = {name.rpartition("::")[2] for name in found["failures"]}
    assert broken == {"test_later", "test_ending", "test_odd", "test_dies"} and found["failed"] == 4
    assert {name.rpartition("::")[2] for name in found["exit_codes"]} == broken
    assert not found["out_of_time"] and any("test_lives" in name for group in groups for name in group)


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])
def test_transformers_baseline_in_child_is_stock(name: str) -> None:
    model = load_pair(pair(300, **ARCHITECTURES[name])).target.model
    before = {where: type(module) for where, module in model.named_modules()}
    ids = torch.arange(9).unsqueeze(0)
    with torch.inference_mode():
        wanted = model(ids).logits
    assert use_fused_norms(model) and use_fused_rotation(model)
    forwards = {where: vars(module).get("forward") for where, module in model.named_modules()}
    with transformers_baseline.stock(model):
        assert {where: type(module) for where, module in model.named_modules()} == before
        assert not any("forward" in vars(module) for module in model.modules())
        with torch.inference_mode():
            assert torch.allclose(model(ids).logits, wanted, atol=1e-5)
    assert any(isinstance(module, FusedNorm) for module in model.modules()) and any(forwards.values())
    assert {where: vars(module).get("forward") for where, module in model.named_modules()} == forwards


def test_random_pairs_of_the_gpu_benchmark_keep_their_whole_vocabulary() -> None:
    """Draws and verification over a byte tokenizer's 257 tokens would say nothing about 151,936."""
    config = shapes.pair_config("qwen2.5-0.5b", "qwen2.5-1.5b", 64)
    loaded = load_pair(config)
    rows = [config[role]["source"]["random"]["vocab_size"] for role in ("draft", "target")]
    assert loaded.vocab == min(rows) > 2000
    assert loaded.tokenizer is None and loaded.info.masked_rows == (0, 0)
