"""Two models of your own, given on the command line, in Python, in a pair's file and in a sweep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from transformers import AutoModelForCausalLM

from cascli import compare, load_pair, sweep
from cascli.analysis.comparison import Comparison
from cascli.config import HubSource, PathSource, load_config, pair_of_models, source_of
from cascli.errors import ConfigError, UsageError
from cascli.jobs import step_times
from cascli.strategies import Strategy, parse
from cascli.sweeps.records import Records
from tests.commands import invoke
from tests.pairs import ARCHITECTURES, pair

FEW = ["--max-new-tokens", "5", "--device", "cpu", "--temperature", "0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints `small` and `large`, which disagree, and two with other tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    made = load_pair(pair(257, **ARCHITECTURES["qwen2"]))
    for name, model in zip(("small", "large"), made.models.values(), strict=True):
        model.model.to(torch.float32).save_pretrained(folder / name)
        made.tokenizer.save_pretrained(folder / name)
    other = AutoModelForCausalLM.from_config(made.target.model.config)
    tokenizer = load_pair(pair(257)).tokenizer
    tokenizer.add_tokens(["<extra>"])
    for name in ("strange", "swapped"):
        other.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        file = folder / name / "tokenizer.json"
        text = json.loads(file.read_text())
        vocab = text["model"]["vocab"]
        if name == "swapped":
            first, second = sorted(vocab, key=vocab.get)[:2]
            vocab[first], vocab[second] = vocab[second], vocab[first]
        else:
            text["model"]["vocab"] = {f"xyz{token}": place for token, place in vocab.items()}
        file.write_text(json.dumps(text))
    return folder


@pytest.fixture
def cli(clean_env: pytest.MonkeyPatch, models: Path, tmp_path: Path):
    """The command line, run in the folder of the models, with a separate home."""
    clean_env.chdir(models)
    clean_env.setenv("CASCLI_HOME", str(tmp_path / "home"))

    return invoke


# ---- what a name means


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("Qwen/Qwen3-0.6B", HubSource(hub="Qwen/Qwen3-0.6B")),
        ("Qwen/Qwen3-0.6B@v1.0", HubSource(hub="Qwen/Qwen3-0.6B", revision="v1.0")),
        ("gpt2", HubSource(hub="gpt2")),
        ("hub:small", HubSource(hub="small")),
        ("hub:a/b@c", HubSource(hub="a/b", revision="c")),
        ("hub:a/b@main#0123abc", HubSource(hub="a/b", revision="0123abc")),  # as traces name it
        ("hub:a/b@fix#12", HubSource(hub="a/b", revision="fix#12")),
        ("hub:a/b@fix#0123abc-x", HubSource(hub="a/b", revision="fix#0123abc-x")),
        ("/x/y/../model.gguf", PathSource(path="/x/model.gguf")),
    ],
)
def test_names(text: str, source: object) -> None:
    assert source_of(text) == source


@pytest.mark.parametrize("text", ["small", "./small", "path:small", "large/../small"])
def test_an_existing_folder_takes_precedence_over_the_hub(
    models: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.chdir(models)
    assert source_of(text) == PathSource(path=str(models / "small"))


@pytest.mark.parametrize("text", ["./absent", "a/b/c", "model.GGUF", "~nobody/x"])
def test_text_that_can_only_be_a_path_is_not_searched_on_the_hub(text: str) -> None:
    assert isinstance(source_of(text), PathSource)


@pytest.mark.parametrize("text", ["", "a b", "@main", "a/b?c"])
def test_text_that_is_not_a_model_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected a model folder"):
        source_of(text)


def test_a_model_in_place_of_a_pairs_own(models: Path) -> None:
    changed = pair_of_models(str(models / "small"), None, "tiny-random")
    ready = load_config("tiny-random")
    assert changed.draft is not None
    assert str(changed.draft.source) == f"path:{models / 'small'}"
    assert (changed.target, changed.defaults) == (ready.target, ready.defaults)
    assert changed.name == "tiny-random with draft small"
    with pytest.raises(UsageError, match=r"^draft: needs target, or a pair"):
        pair_of_models("gpt2", None)


# ---- the command line


def test_the_threads_flag_sets_the_number_of_threads(cli) -> None:
    before = torch.get_num_threads()
    try:
        assert cli("generate", "hi", "--target", "large", *FEW, "--threads", "2").exit_code == 0
        assert torch.get_num_threads() == 2  # without the flag, tiny models use one
        assert "--threads: " in cli("generate", "hi", "--threads", "0").stderr
    finally:
        torch.set_num_threads(before)


def test_two_folders_are_compared_with_one_command(cli) -> None:
    named = cli("compare", "hi", "--draft", "small", "--target", "large", *FEW, "--no-measure", "--json")
    assert named.exit_code == 0, named.output
    found = Comparison.from_json(named.stdout)
    assert found.runs[0].pair.name == "small+large"
    sources = {role: model.source for role, model in found.runs[0].pair.models.items()}
    assert [Path(source).name for source in sources.values()] == ["small", "large"]
    exchanged = cli("compare", "hi", "--draft", "large", "--target", "small", *FEW, "--no-measure", "--json")
    answers = {run.strategy: run.token_ids for run in found.runs}
    other = {run.strategy: run.token_ids for run in Comparison.from_json(exchanged.stdout).runs}
    assert answers["target"] == other["draft"] != answers["draft"] == other["target"]


def test_a_draft_may_have_its_own_tokenizer(cli, models: Path) -> None:
    """The table and a file that `init` writes report the tokenizers, and speculation stays lossless."""
    both = ("--draft", "swapped", "--target", "large")
    found = cli("compare", "hi", *both, "-s", "target", "-s", "speculative", *FEW, "--no-measure")
    assert found.exit_code == 0, found.output
    assert "q(I)" in found.stdout and "the draft can produce 257 of the target's 257 tokens" in found.stdout
    assert "The tokenizers differ" not in found.output
    assert cli("init", "other.yaml", *both).exit_code == 0
    assert (
        "The tokenizers differ: the draft can produce 257 of the target's 257 tokens"
        in (models / "other.yaml").read_text()
    )
    saved = json.loads(cli("generate", "hi", *both, "-s", "speculative", *FEW, "--json").stdout)
    assert saved["metrics"]["lossless"] and 0.9 < saved["metrics"]["shared_mass"] <= 1


def test_a_target_alone(cli) -> None:
    found = cli("generate", "hi", "--target", "large", *FEW, "--json")
    assert json.loads(found.stdout)["params"]["draft"] == "prompt-lookup"
    assert json.loads(found.stdout)["pair"]["draft"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--draft", "small"], "--draft: needs --target"),
        (["--target", ""], "--target: expected a model folder"),
        (["-c", ""], "unknown pair ''"),
        (["--draft", "./absent", "--target", "large"], "--draft: path:{}/absent: no such file or folder"),
        (["--draft", "small", "--target", "a b"], "--target: expected a model folder"),
        (["--draft", ".", "--target", "large"], "--draft: path:{}: the folder has no config.json"),
        (["-c", "small"], "small: this is a folder, but a pair is two models: give them as --draft and --target"),
        (["--draft", "strange", "--target", "large"], "the models' tokenizers differ: they share 1 tokens"),
    ],
)
def test_errors_name_the_flag(cli, models: Path, arguments: list[str], words: str) -> None:
    found = cli("generate", "hi", *arguments)
    assert found.exit_code == 2
    assert words.format(models) in found.stderr


def test_a_missing_path_is_reported_before_torch_is_imported(models: Path) -> None:
    code = (
        "import sys; from cascli.cli.app import run\n"
        "sys.argv[1:] = ['generate', 'hi', '--draft', './absent', '--target', 'large']\n"
        "code = run(); print(code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=models, capture_output=True, text=True, check=False)
    assert found.stdout.split() == ["2", "False"]


def test_a_name_that_may_be_a_misspelt_folder_is_reported(cli) -> None:
    found = cli("generate", "hi", "--draft", "smal", "--target", "large", "--offline")
    assert found.exit_code == 3
    assert "draft: there is no folder 'smal' here" in found.stderr
    assert "folder 'large'" not in found.stderr


def test_models_come_from_flags_or_the_environment_never_a_mix_of_both(cli, clean_env: pytest.MonkeyPatch) -> None:
    clean_env.setenv("CASCLI_DRAFT", "small")
    clean_env.setenv("CASCLI_TARGET", "large")
    asked = ("generate", "hi", *FEW, "--json")
    assert json.loads(cli(*asked).stdout)["pair"]["name"] == "small+large"
    assert json.loads(cli(*asked, "-c", "tiny-random").stdout)["pair"]["name"] == "tiny-random"
    assert json.loads(cli(*asked, "--target", "large").stdout)["pair"]["name"] == "large"
    clean_env.delenv("CASCLI_TARGET")
    assert "CASCLI_DRAFT: needs CASCLI_TARGET" in cli(*asked).stderr


# ---- files


def written(folder: Path, **models: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "pair.yaml"
    file.write_text(yaml.safe_dump({role: {"source": {"path": path}} for role, path in models.items()}))
    return file


def test_paths_in_a_file_are_relative_to_it(cli, models: Path, clean_env: pytest.MonkeyPatch) -> None:
    file = written(models / "pairs", draft="../small", target="../large")
    clean_env.chdir(Path.home())
    config = load_config(file)
    assert [str(model.source) for model in config.models.values()] == [f"path:{models}/small", f"path:{models}/large"]
    assert cli("generate", "hi", "-c", str(file), *FEW).exit_code == 0


def test_an_error_names_file_and_key(cli, models: Path) -> None:
    written(models / "wrong", draft="small", target="../large")
    found = cli("generate", "hi", "-c", "wrong/pair.yaml")
    assert found.exit_code == 2
    assert f"wrong/pair.yaml: draft.source: path:{models}/wrong/small: no such file or folder" in found.stderr


def test_init_writes_a_file_that_works_from_anywhere(cli, models: Path, clean_env: pytest.MonkeyPatch) -> None:
    file = models / "mine.yaml"
    made = cli("init", "mine.yaml", "--draft", "small", "--target", "./large")
    assert made.exit_code == 0, made.output
    assert f"-c {file.name}" in made.stderr
    text = file.read_text()
    assert yaml.safe_load(text)["draft"]["source"] == {"path": "small"}
    assert "257 token ids are shared" in text
    weights = sum(each.numel() for each in load_pair(draft=models / "small", target=models / "large")
                  .draft.model.parameters())  # fmt: skip
    assert f"qwen2, 2 layers, {weights / 1e3:.3g}K weights" in text
    clean_env.chdir(Path.home())
    assert cli("generate", "hi", "-c", str(file), *FEW).exit_code == 0
    again = cli("init", str(file), "--draft", str(models / "small"), "--target", str(models / "large"))
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert file.read_text() == text


@pytest.mark.parametrize("name", ["tiny-random", "qwen2.5-coder"])
def test_init_does_not_copy_the_pair_of_the_environment(cli, name: str, clean_env: pytest.MonkeyPatch) -> None:
    """The bug: it lost the pair's defaults, and failed for a random one; init has no --config."""
    clean_env.setenv("CASCLI_CONFIG", name)
    found = cli("init", "copied.yaml", "--offline")
    assert found.exit_code == 2 and "give --draft and --target" in found.stderr and not Path("copied.yaml").exists()


def test_keys_without_values_and_keys_given_twice(cli, models: Path) -> None:
    file = written(models / "keys", draft="../small", target="../large")
    whole = file.read_text()
    file.write_text(whole + "defaults:\n  # temperature: 0.0\nabout:\n")
    assert load_config(file).defaults.given() == {}
    file.write_text(whole + whole.partition("target:")[1] + whole.partition("target:")[2])
    with pytest.raises(ConfigError, match=r"pair\.yaml:\d+: not valid YAML: the key 'target' is given twice"):
        load_config(file)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x.yaml"], "give --draft and --target"),
        (["x.txt", "--target", "large"], "FILE x.txt: "),
        (["x.yaml", "--draft", "strange", "--target", "large"], "tokenizers differ"),
    ],
)
def test_init_writes_nothing_that_would_not_work(cli, models: Path, arguments: list[str], words: str) -> None:
    found = cli("init", *arguments)
    assert found.exit_code == 2
    assert words in found.stderr
    assert not (models / arguments[0]).exists()


def test_names_that_yaml_would_misread(cli, models: Path, tmp_path: Path) -> None:
    odd = tmp_path / "true: {#1}"
    odd.symlink_to(models / "small")
    file = tmp_path / "1e3.yaml"
    found = cli("init", str(file), "--draft", str(odd), "--target", str(models / "large"))
    assert found.exit_code == 0, found.output
    config = load_config(file)
    assert config.name == "1e3"
    assert config.draft is not None
    assert str(config.draft.source) == f"path:{odd}"


# ---- sweeps

SWEEP = {"strategies": ["speculative:k=2"], "task": {"kind": "builtin"}, "limit": 2, "max_new_tokens": 3}


def test_the_pair_of_a_sweep_may_be_a_mapping_or_a_relative_file(cli, models: Path, tmp_path: Path) -> None:
    written(models / "exp", draft="../small", target="../large")
    mapping = {role: {"source": {"path": f"../{name}"}} for role, name in (("draft", "small"), ("target", "large"))}
    for name, pair_ in (("by-file", "pair.yaml"), ("by-mapping", mapping)):
        file = models / "exp" / f"{name}.yaml"
        file.write_text(yaml.safe_dump(SWEEP | {"pair": pair_}))
        found = cli("sweep", str(file), "-o", str(tmp_path / name))
        assert found.exit_code == 0, found.output
        assert len(list(Records(tmp_path / name).read())) == 4
    (models / "exp" / "wrong.yaml").write_text(yaml.safe_dump(SWEEP | {"pair": "absent.yaml"}))
    wrong = cli("sweep", "exp/wrong.yaml")
    assert wrong.exit_code == 2
    assert "exp/wrong.yaml: pair: exp/absent.yaml: no such file" in wrong.stderr
    (models / "exp" / "wrong.yaml").write_text(yaml.safe_dump(SWEEP | {"pair": mapping | {"drafts": 1}}))
    assert "exp/wrong.yaml: pair: drafts: unknown key" in cli("sweep", "exp/wrong.yaml").stderr


@pytest.mark.parametrize("pair_", [3, ["small"], None])
def test_a_pair_of_the_wrong_type_is_explained(cli, models: Path, pair_: object) -> None:
    (models / "kind.yaml").write_text(yaml.safe_dump(SWEEP | {"pair": pair_}))
    found = cli("sweep", "kind.yaml")
    assert found.exit_code == 2
    assert "kind.yaml: pair: expected a pair's name, the path of its file" in found.stderr


def test_a_sweep_refuses_to_write_its_results_to_a_file(cli, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    found = cli("sweep", "rules", "-c", "tiny-random", "--limit", "1", "-o", str(tmp_path / "mine"))
    assert found.exit_code == 2
    assert "is a file" in found.stderr
    assert (tmp_path / "mine").read_text() == "kept"


def test_flags_take_precedence_over_the_sweep_file(cli, tmp_path: Path, clean_env: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    flags = ["--temperature", "0.5", "--seed", "7", "--max-new-tokens", "4", "-s", "speculative:k=3", "--limit", "1"]
    models_ = ["--draft", "small", "--target", "large", "--dtype", "float32", "--device", "cpu"]
    found = cli("sweep", "rules", *models_, *flags, "-o", str(out))
    assert found.exit_code == 0, found.output
    done = list(Records(out).read())
    assert {(each.cell.strategy, each.cell.temperature, each.cell.seed) for each in done} == {
        ("target", 0.5, 7),
        ("speculative:k=3", 0.5, 7),
    }
    assert all(len(each.token_ids) <= 2 * 4 for each in done)  # a conversation of two turns
    plan = Records(out).header().plan
    assert (plan.dtype, plan.max_new_tokens) == ("float32", 4)
    assert load_config(plan.pair).name == "small+large"
    resumed = cli("sweep", "rules", *models_, *flags, "-o", str(out), "--resume", "--seed", "8")
    assert resumed.exit_code == 0, resumed.output
    other = cli("sweep", "rules", "-c", "tiny-random", "--dtype", "float32", *flags, "-o", str(out), "--resume")
    assert other.exit_code == 2
    assert "was made" in other.stderr
    clean_env.setenv("CASCLI_CONFIG", "tiny-random")
    clean_env.setenv("CASCLI_MAX_NEW_TOKENS", "2")
    shown = cli("sweep", "rules", "--dry-run", "--limit", "1")
    assert "tiny-random" in shown.stdout
    assert "at most 2 tokens" in shown.stdout


def test_a_strategy_that_a_flag_misspells(cli) -> None:
    found = cli("sweep", "rules", "-c", "tiny-random", "-s", "speculativ")
    assert found.exit_code == 2
    assert "did you mean 'speculative'" in found.stderr
    unknown = cli("sweep", "rule", "-c", "tiny-random")
    assert unknown.exit_code == 2
    assert "unknown sweep 'rule'; did you mean 'rules'" in unknown.stderr


def test_a_dry_run_prints_everything_in_one_block(cli, tmp_path: Path) -> None:
    asked = ["sweep", "rules", "--dry-run", "-c", "tiny-random", "--dtype", "auto", "-o", str(tmp_path / "new")]
    before = cli(*asked)
    assert before.exit_code == 0
    assert "cascli bench" in before.stdout
    for words in (
        "pair          tiny-random, dtype auto",
        "prompts       12 of builtin with 16 turns, scored by",
        str(tmp_path),
    ):
        assert words in before.stdout
    assert not (tmp_path / "new").exists()
    assert cli("compare", "hi", "-c", "tiny-random", *FEW[:2], "-s", "target", "-s", "speculative").exit_code == 0
    known = step_times.load_step_times(load_config("tiny-random"), step_times.RunOptions())
    assert known is not None
    after = cli(*asked)
    assert f"from step times of {known.date}" in after.stdout
    assert "cascli bench" not in after.stdout
    assert "cascli bench" in cli(*asked, "--threads", "2").stdout  # no step times for another number of threads
    told = json.loads(cli(*asked, "--json").stdout)
    assert told["schema"] == "cascli.plan/1" and told["strategies"][0] == "target"


def test_python(models: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(models)
    loaded = load_pair(draft="small", target="large")
    found = compare(loaded, "hi", ["target", "speculative:k=2"], max_new_tokens=4, temperature=0, measure=False)
    assert found.summary[1].same_as_target
    table = sweep(SWEEP, loaded, output=tmp_path / "a", strategies=["draft"], max_new_tokens=2, limit=1)
    assert [row.strategy for row in table] == ["target", "draft"]
    assert all(row.answers == 1 and row.tokens <= 2 * 2 for row in table)  # two turns
    again = sweep("rules", loaded, output=tmp_path / "b", strategies=["draft"], max_new_tokens=2, limit=1)
    assert [row.strategy for row in again] == ["target", "draft"]
    with pytest.raises(UsageError, match="already loaded"):
        sweep(SWEEP, loaded, dtype="int8")
    with pytest.raises(ConfigError, match="sweep: strategys: unknown key"):
        sweep(SWEEP | {"strategys": []})


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["draft", parse("draft")])
def test_python_compares_a_single_strategy(strategy: str | Strategy) -> None:
    """A string was read letter by letter."""
    found = compare(load_pair("tiny-random"), "hi", strategy, max_new_tokens=2)
    assert [run.strategy for run in found.runs] == ["draft"]


def test_a_notebook_compares_two_folders(models: Path) -> None:
    """The notebook runs in a separate kernel, as in Jupyter."""
    cells = [
        'from cascli import compare, load_pair\npair = load_pair(draft="small", target="large")\npair',
        'compare(pair, "hi", ["target", "speculative:k=2"], max_new_tokens=4, temperature=0, measure=False)',
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(
        notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(models)}}
    ).execute()
    loaded, compared = (cell.outputs[-1]["data"] for cell in notebook.cells)
    assert "small+large" in loaded["text/plain"]
    assert "speculative k=2" in compared["text/html"] and "same" in compared["text/html"]
    assert len(compared["text/plain"].splitlines()) == 1
