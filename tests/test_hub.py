"""Publishing and pulling with the Hub's real client against a local server; what goes up, and what is not trusted."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf import models, outputs, registry
from rlhf.generation import generate_texts
from rlhf.hub import cards
from rlhf.hub.publish import assemble, publish
from rlhf.hub.pull import MANIFEST, pull, read_manifest
from rlhf.profiles import load_profile
from rlhf.reward.scoring import score

import pandas as pd
import pytest
import torch
from conftest import run_script
from hub_server import Hub
from huggingface_hub import ModelCard

REPO = "user/rlhf-gpt2"
COMPARED = ("rouge.csv", "behaviour.csv", "reward.csv", "kl.csv", "gold.csv", "paired.csv", "reward_probes.csv")
PUBLISHED = {
    "base",
    "sft_full_final",
    "sft_qlora_final",
    "reward_model_final",
    "ppo_scratch_final",
    "ppo_aligned_final",
}


@pytest.fixture
def own_run(run, tmp_path, monkeypatch):
    """The profile of a copy of the finished run, which may be written."""
    shutil.copytree(run, tmp_path / "own")
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "own"))
    return load_profile("smoke")


@pytest.fixture(scope="module")
def server():
    server = Hub()
    yield server
    server.close()


def client(server, home: Path, outputs_folder: Path, token: str | None = "hf_test") -> dict[str, str]:
    """The environment in which the Hub's client talks to the local server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "RLHF_"))}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "RLHF_PROFILE": "smoke"}
    return environment | {"RLHF_OUTPUTS": str(outputs_folder)} | ({"HF_TOKEN": token} if token else {})


def run_hub(environment: dict[str, str], *arguments: str, before: str = "") -> subprocess.CompletedProcess:
    code = f"{before}\nimport sys\nfrom rlhf.hub.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=outputs.ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def published(server, run, tmp_path_factory) -> str:
    """The finished run, published to the server; the commit."""
    done = run_hub(client(server, tmp_path_factory.mktemp("home"), run), "publish", REPO, "--upload")
    assert done.returncode == 0, done.stderr
    assert server.private[REPO] is True
    return server.branches[REPO]["main"]


# What goes up


def test_dry_run_shows_the_files_and_sends_nothing(server, run, tmp_path):
    before = len(server.requests)
    done = run_hub(client(server, tmp_path, run, token=None), "publish", REPO)
    assert done.returncode == 0, done.stderr
    assert re.search(r"MB  sft_full_final/model\.safetensors", done.stdout)
    assert "Nothing was uploaded; add UPLOAD=1" in done.stdout
    assert len(server.requests) == before


def test_published_are_all_stages_with_cards_and_nothing_that_can_hold_code(server, published):
    files = server.files(REPO, published)
    assert {name.split("/")[0] for name in files if "/" in name} == PUBLISHED
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".txt", ".md", ""}
    for name in [f"{folder}/README.md" for folder in PUBLISHED] + ["README.md"]:
        card = ModelCard(files[name].decode())
        assert card.data.license == "mit" and card.text.strip().startswith("# rlhf-gpt2")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= {
        name.split("/")[1] for name in files if name.startswith("reward_model_final/")
    }


def test_manifest_of_every_published_folder_fits_what_was_published(repository):
    assert all((repository / folder / outputs.MANIFEST).exists() for folder in PUBLISHED)
    assert {outputs.fault_of(repository / folder) for folder in PUBLISHED} == {""}


def test_no_path_of_this_machine_and_no_token_goes_up(server, published, run):
    for name, content in server.files(REPO, published).items():
        if not name.endswith(".safetensors"):
            text = content.decode()
            assert str(run) not in text and str(outputs.ROOT) not in text and "hf_test" not in text, name
            assert not re.search(r'"/(tmp|home|root|work|Users)/', text), name
    for stage in ("reward_model_final", "sft_qlora_final"):
        config = json.loads(server.files(REPO, published)[f"{stage}/adapter_config.json"])
        assert config["base_model_name_or_path"] == REPO


def test_link_to_a_file_elsewhere_is_not_published(own_run, tmp_path):
    secret = tmp_path / "secret.json"
    secret.write_text('{"password": 1}')
    (outputs.checkpoint_path(own_run, "base") / "extra.json").symlink_to(secret)
    with pytest.raises(ValueError, match=r"base/extra\.json is a link that leads out of .*put the file itself"):
        publish(own_run, REPO)


def test_cards_quote_the_csvs_with_intervals(finished):
    card = cards.card(finished, REPO, "sft_full")
    rouge = outputs.read_csv(finished, "rouge.csv")
    row = rouge[(rouge.model == "sft_full") & (rouge.metric == "rouge1")].iloc[0]
    assert f"| rouge1 | {row['mean']:.3f} | [{row.ci_low:.3f}, {row.ci_high:.3f}] | {row.n} |" in str(card)
    results = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert results["rouge1"] == pytest.approx(row["mean"], abs=1e-4)
    accuracy = outputs.read_csv(finished, "reward_model.csv").set_index("metric").value.accuracy
    model = cards.card(finished, REPO, "reward_model").data
    assert model.pipeline_tag == "text-classification" and model.library_name == "peft"
    assert [r.metric_value for r in model.eval_results] == [pytest.approx(accuracy, abs=1e-4)]
    aligned = cards.results(finished, "ppo_aligned")
    assert len(aligned) and aligned.equals(cards.results(finished, cards.aligned(cards.read_run(finished))))


def test_card_of_the_repository_names_every_published_folder(finished):
    text = str(cards.card(finished, REPO))
    assert [stage for stage in PUBLISHED if f"- `{stage}/`: " not in text] == []


def test_cards_show_the_settings_of_the_run_and_not_those_of_the_environment(own_run, monkeypatch):
    run = outputs.read_json(own_run, "run.json")
    run["settings"]["sft"]["epochs"] = 12.5
    outputs.update_run(own_run, settings=run["settings"], seed=77, git={"commit": "abc"})
    monkeypatch.setenv("RLHF_SEED", "5")
    text = str(cards.card(load_profile("smoke"), REPO, "sft_full"))
    assert '"epochs": 12.5' in text and "Profile `smoke`, seed 77, commit `abc`." in text


@pytest.mark.parametrize(
    ("model", "base_model"),
    [("openai-community/gpt2", "openai-community/gpt2"), ("gpt2-copy", None), ("models/gpt2-copy", None)],
)
def test_base_model_is_named_only_where_it_is_one_of_the_hub(own_run, model, base_model):
    """run.json shows a local path by its last part, or from the folder that holds the outputs on."""
    (outputs.root().parent / "models" / "gpt2-copy").mkdir(parents=True)
    run = outputs.read_json(own_run, "run.json")
    outputs.update_run(own_run, settings=run["settings"] | {"model": model, "dataset": model, "lab": None})
    card = cards.card(own_run, REPO, "sft_qlora")
    assert card.data.base_model == base_model
    assert card.data.datasets == (base_model and [base_model])
    assert f"`{model}`" in card.text
    by_name, beside = f"with its base, {model}", f'from_pretrained("{REPO}", subfolder="base")'
    assert (by_name if base_model else beside) in card.text
    assert ("base" in cards.published(own_run, cards.read_run(own_run))) is (base_model is None)


def test_run_by_adapters_is_published_and_pulled_without_a_full_policy(own_run, tmp_path, monkeypatch):
    """Its policies and reward model are adapters on the base, and cards and configurations say so."""
    qlora = outputs.checkpoint_path(own_run, "sft_qlora_final")
    for name in ("ppo_trl_final", "ppo_scratch_final", "ppo_aligned_final"):
        shutil.rmtree(outputs.checkpoint_path(own_run, name))
        shutil.copytree(qlora, outputs.checkpoint_path(own_run, name))
    shutil.rmtree(outputs.checkpoint_path(own_run, "sft_full_final"))
    outputs.update_run(own_run, by_adapters=True)
    folder = tmp_path / "repository"
    folder.mkdir()
    assemble(own_run, REPO, folder)
    assert not (folder / "sft_full_final").exists()
    base = f'from_pretrained("{REPO}", subfolder="base"'
    for key in ("sft_qlora", "ppo_aligned", "reward_model"):
        name = registry.MODELS[key].checkpoint
        assert json.loads((folder / name / "adapter_config.json").read_text())["base_model_name_or_path"] == REPO
        card = cards.card(own_run, REPO, key)
        assert card.data.library_name == "peft" and base in card.text and "sft_full_final" not in card.text
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "pulled"))
    assert "sft_full_final" not in pull(own_run, str(folder))
    assert outputs.by_adapters(own_run)


def test_policy_that_a_command_has_made_is_published_with_its_results_and_pulled(own_run, tmp_path, monkeypatch):
    made = outputs.checkpoint_path(own_run, "dpo_final")
    shutil.copytree(outputs.checkpoint_path(own_run, "sft_full_final"), made)
    rows = [(0, "dpo", "gold", 5.1, 5.0, 5.2, 9), (1, "dpo", "gold", 7.7, 7.6, 7.8, 9), (0, "ipo", "gold", 6, 5, 7, 9)]
    columns = ["seed", "method", "metric", "mean", "ci_low", "ci_high", "n"]
    outputs.write_csv(own_run, "beyond_metrics.csv", pd.DataFrame(rows, columns=columns))
    searched = [("dpo", "beta", 1e-5, 0.1, False), ("dpo", "beta", 3e-5, 0.1, True), ("ipo", "beta", 1e-4, 3, True)]
    columns = ["method", "dial", "learning_rate", "value", "chosen"]
    outputs.write_csv(own_run, "beyond_search.csv", pd.DataFrame(searched, columns=columns))
    folder = tmp_path / "repository"
    folder.mkdir()
    assemble(own_run, REPO, folder)
    card = (folder / "dpo_final" / "README.md").read_text()
    assert "| gold | 5.100 | [5.000, 5.200] | 9 |" in card and "7.7" not in card
    assert '"learning_rate": 3e-05,\n "beta": 0.1' in card and 'subfolder="dpo_final"' in card
    assert "`dpo_final/`" in (folder / "README.md").read_text() and not (folder / "ipo_final").exists()
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "pulled"))
    assert "dpo_final" in pull(own_run, str(folder))
    ours = outputs.checkpoint_path(own_run, "dpo_final") / "model.safetensors"
    assert ours.read_bytes() == (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("model", "licence"), [("openai-community/gpt2", "mit"), ("smollm2", "apache-2.0"), ("somebody/else", None)]
)
def test_licence_and_language_are_named_only_where_that_of_the_base_is_known(own_run, model, licence):
    run = outputs.read_json(own_run, "run.json")
    assert cards.card(own_run, REPO, "sft_full").data.license == "mit"
    outputs.update_run(own_run, settings=run["settings"] | {"model": model, "lab": None})
    card = cards.card(own_run, REPO, "sft_full")
    assert card.data.license == licence and card.data.language == (licence and "en")
    assert "English" not in card.text


def test_architecture_that_a_card_names_is_that_of_the_model(own_run):
    path = outputs.checkpoint_path(own_run, "base") / "config.json"
    path.with_name(outputs.MANIFEST).unlink()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "llama"}))
    run = outputs.read_json(own_run, "run.json")
    outputs.update_run(own_run, settings=run["settings"] | {"model": "somebody/llama", "lab": None})
    for key in (None, "sft_full"):
        card = cards.card(own_run, REPO, key)
        assert "llama" in card.data.tags and "gpt2" not in card.data.tags and "GPT-2" not in card.text


def test_without_a_token_nothing_is_made_and_the_error_says_how_to_log_in(server, run, tmp_path):
    before = len(server.requests)
    done = run_hub(client(server, tmp_path, run, token=None), "publish", "user/other", "--upload")
    assert done.returncode == 2 and "hf auth login" in done.stderr and "HF_TOKEN" in done.stderr
    assert len(server.requests) == before


@pytest.mark.parametrize("name", ["", "no-owner", "a/b/c", "user/with space"])
def test_name_that_is_none_is_refused(profile, name):
    with pytest.raises(ValueError, match=r"give a name like user/rlhf-gpt2"):
        publish(profile, name)


def test_stage_that_has_not_run_is_named_before_anything_goes_up(own_run):
    shutil.rmtree(outputs.checkpoint_path(own_run, "base"))
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*base is missing; run 01_supervised_finetuning"):
        publish(own_run, REPO)


def test_run_that_is_not_finished_says_so(profile):
    outputs.update_run(profile, seed=0, git={}, settings={})
    with pytest.raises(FileNotFoundError, match=r"lacks ppo_aligned_final; finish the run first \(make run\)"):
        publish(profile, REPO)


# What comes back


@pytest.mark.slow
def test_published_pulled_and_evaluated_gives_the_same_tables(server, smoke, tmp_path):
    done = run_hub(client(server, tmp_path / "home", smoke), "publish", "user/smoke", "--upload")
    assert done.returncode == 0, done.stderr
    commit = server.branches["user/smoke"]["main"]
    environment = client(server, tmp_path / "home", tmp_path / "outputs")
    printed = run_script(tmp_path / "outputs", "run_notebooks.py", FROM=f"hub:user/smoke@{commit}", **environment)
    assert "Pulled from user/smoke" in printed
    ours, theirs = (folder / "evaluation" / "smoke" for folder in (smoke, tmp_path / "outputs"))
    for name in COMPARED:
        before, after = (pd.read_csv(folder / name) for folder in (ours, theirs))
        keys = [column for column in ("model", "metric", "probe") if column in before]
        pd.testing.assert_frame_equal(
            before.sort_values(keys, ignore_index=True), after.sort_values(keys, ignore_index=True), obj=name
        )
    run = json.loads((theirs / "run.json").read_text())
    assert run["pulled"] == {"from": "user/smoke", "commit": commit}


def test_broken_download_goes_on_where_it_broke(server, published, tmp_path):
    name = "sft_full_final/model.safetensors"
    server.break_once, server.ranges = {name}, []
    small_chunks = "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1000"
    done = run_hub(client(server, tmp_path / "home", tmp_path / "outputs"), "pull", REPO, before=small_chunks)
    assert done.returncode == 0, done.stderr
    start = int(re.fullmatch(r"bytes=(\d+)-\d*", server.ranges[0])[1])
    assert 0 < start <= len(server.files(REPO)[name]) // 2
    pulled = tmp_path / "outputs" / "checkpoints" / "smoke" / name
    assert pulled.read_bytes() == server.files(REPO)[name]


def test_only_safe_files_are_fetched_and_another_revision_is_another_commit(server, published, tmp_path):
    evil = server.commit(REPO, {"sft_full_final/pytorch_model.bin": b"pickle", "modeling.py": b"print()"})
    before = len(server.requests)
    done = run_hub(client(server, tmp_path / "home", tmp_path / "outputs"), "pull", REPO)
    assert done.returncode == 0, done.stderr
    asked = " ".join(path for _, path in server.requests[before:])
    assert evil in asked and "pytorch_model.bin" not in asked and "modeling.py" not in asked
    run = json.loads((tmp_path / "outputs" / "evaluation" / "smoke" / "run.json").read_text())
    assert run["pulled"]["commit"] == evil != published


@pytest.mark.parametrize(("name", "revision"), [("user/nothing", None), (REPO, "no-such-branch")])
def test_repository_or_revision_that_is_not_there_is_named(server, published, tmp_path, name, revision):
    extra = ["--revision", revision] if revision else []
    done = run_hub(client(server, tmp_path / "home", tmp_path / "outputs"), "pull", name, *extra)
    assert done.returncode == 2 and f"repository '{name}'" in done.stderr and "can't be fetched" in done.stderr
    assert revision is None or f"revision '{revision}'" in done.stderr
    assert not (tmp_path / "outputs" / "checkpoints").exists()


@pytest.fixture
def repository(run, tmp_path, monkeypatch) -> Path:
    """What is published, as a local folder; the outputs go elsewhere."""
    folder = tmp_path / "repository"
    folder.mkdir()
    monkeypatch.setenv("RLHF_OUTPUTS", str(run))
    assemble(load_profile("smoke"), REPO, folder)
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "level" / "outputs"))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(profile, repository: Path, match: str) -> None:
    """Pulling raises ValueError and changes no file around the repository."""
    before = contents(repository.parent)
    with pytest.raises(ValueError, match=match):
        pull(profile, str(repository))
    assert contents(repository.parent) == before


def edit_manifest(repository: Path, **entries) -> None:
    manifest = json.loads((repository / MANIFEST).read_text())
    (repository / MANIFEST).write_text(json.dumps(manifest | entries))


def test_pulled_checkpoints_are_those_of_the_run_with_both_of_ppo(profile, repository, run):
    models = {key: model for key, model in registry.MODELS.items() if key not in registry.BY_COMMAND}
    assert sorted(pull(profile, str(repository))) == sorted(model.checkpoint for model in models.values())
    for key, model in models.items():
        ours = outputs.checkpoint_path(profile, model.checkpoint)
        theirs = run / "checkpoints" / "smoke" / model.checkpoint
        weights = "adapter_model.safetensors" if key in ("sft_qlora", "reward_model") else "model.safetensors"
        assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
    noted = outputs.read_json(profile, "run.json")
    assert noted["ppo_aligned_final"] == "ppo_trl_final"
    shown = json.loads((run / "evaluation" / "smoke" / "qualitative.json").read_text())
    assert noted["examples"] == [example["prompt"] for example in shown]
    assert noted["pulled"] == {"from": "repository", "commit": None}


def test_stage_that_a_repository_lacks_is_named_and_nothing_is_written(profile, repository):
    shutil.rmtree(repository / "reward_model_final")
    refused(profile, repository, "lacks reward_model_final; publish it again")


@pytest.mark.parametrize(("field", "value"), [("profile", "gpt2"), ("seed", 7)])
def test_checkpoints_of_another_run_are_refused(profile, repository, field, value):
    edit_manifest(repository, **{field: value})
    refused(profile, repository, rf"made with {field} {value}, not .*RLHF_{field.upper()}={value}")


def test_folder_that_publish_did_not_make_is_refused(profile, tmp_path):
    with pytest.raises(ValueError, match=r"has no rlhf\.json"):
        pull(profile, str(tmp_path))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("ppo_aligned_final", "../../../../victim"),
        ("ppo_aligned_final", "../../../victim"),
        ("ppo_aligned_final", "/" + "tmp/victim"),
        ("ppo_aligned_final", "base"),
        ("ppo_aligned_final", "ppo_aligned_final"),
        ("ppo_aligned_final", ["ppo_trl_final"]),
        ("ppo_aligned_final", None),
        ("profile", "../smoke"),
        ("profile", "unknown"),
        ("profile", ["smoke"]),
        ("by_adapters", 1),
        ("by_adapters", None),
        ("seed", True),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 0.0),
        ("seed", "0"),
        ("examples", "Why?"),
        ("examples", ["Why?"] * 51),
        ("examples", ["x" * 10_001]),
        ("examples", [["Why?"]]),
        ("examples", ["\ud800"]),
        ("examples", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_manifest_with_a_wrong_entry_is_refused_before_anything_is_written(profile, repository, entry, value):
    victim = repository.parent / "victim"  # three folders above the profile's checkpoints
    victim.mkdir()
    (victim / "file").write_text("kept")
    edit_manifest(repository, **{entry: value})
    with pytest.raises(ValueError, match=entry) as error:
        read_manifest(str(repository), repository)
    assert len(str(error.value)) < 300 and "give a repository that `make publish` made" in str(error.value)
    refused(profile, repository, rf"^repository has {entry}=.* in rlhf\.json, not ")


@pytest.mark.parametrize("text", ["", "[]", '"smoke"', "{", "[" * 100_000, "\xff", "null"])
def test_manifest_that_is_no_object_is_refused(profile, repository, text):
    (repository / MANIFEST).write_text(text, encoding="latin-1")
    refused(profile, repository, r"^repository has a rlhf\.json .*; give a repository that `make publish` made")


def test_entries_that_no_one_asked_for_are_left_out(repository):
    edit_manifest(repository, notebooks={"01": 1}, pulled="x")
    assert set(read_manifest("", repository)) == {"profile", "seed", "ppo_aligned_final", "by_adapters", "examples"}


@pytest.mark.parametrize("linked", [MANIFEST, "base/config.json", "base/extra.txt", "base"])
def test_link_that_leads_out_of_the_repository_is_refused(profile, repository, linked):
    elsewhere, place = repository.parent / "elsewhere", repository / linked
    if place.exists():
        shutil.move(place, elsewhere)
    else:
        elsewhere.write_text("secret")
    place.symlink_to(elsewhere)
    refused(profile, repository, r"is a link that leads out of repository; put the file itself in its place")


def cached(repository: Path) -> Path:
    """The repository as the Hub's cache would hold it, its files in blobs/."""
    cache = repository.parent / "models--user--rlhf-gpt2"
    snapshot = cache / "snapshots" / "0123abcd"
    shutil.copytree(repository, snapshot)
    (cache / "blobs").mkdir()
    for i, file in enumerate([path for path in snapshot.rglob("*") if path.is_file()]):
        file.rename(cache / "blobs" / str(i))
        file.symlink_to(cache / "blobs" / str(i))
    return snapshot


def test_links_of_the_hubs_cache_are_followed_into_its_blobs_alone(profile, repository):
    snapshot = cached(repository)
    secret = snapshot.parents[1] / "secret"
    secret.write_text("{}")
    (snapshot / "base" / "extra.json").symlink_to(secret)
    refused(profile, snapshot, r"base/extra\.json is a link that leads out")
    (snapshot / "base" / "extra.json").unlink()
    pull(profile, str(snapshot))
    config = outputs.checkpoint_path(profile, "base") / "config.json"
    assert not config.is_symlink() and config.read_bytes() == (repository / "base" / "config.json").read_bytes()
    assert outputs.read_json(profile, "run.json")["pulled"]["commit"] == "0123abcd"


def test_files_that_can_hold_code_are_not_copied(profile, repository):
    (repository / "base" / "modeling.py").write_text("print()")
    (repository / "base" / "folder.json").mkdir()
    pull(profile, str(repository))
    copied = {path.name for path in outputs.checkpoint_path(profile, "base").iterdir()}
    assert "config.json" in copied and copied.isdisjoint({"modeling.py", "folder.json"})


def test_checkpoints_of_a_run_of_its_own_are_not_replaced(profile, repository):
    own = outputs.checkpoint_path(profile, "sft_full_final")
    own.mkdir(parents=True)
    (own / "model.safetensors").write_text("trained for an hour")
    outputs.update_run(profile, seed=0)
    refused(profile, repository, "holds sft_full_final of a run of its own.*RLHF_OUTPUTS=<another folder>")


def test_what_was_pulled_may_be_pulled_again_also_after_an_interrupt(profile, repository, monkeypatch):
    def copyfile(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "copyfile", copyfile)
        pull(profile, str(repository))
    pull(profile, str(repository))
    assert pull(profile, str(repository))


def test_base_that_is_on_the_hub_is_fetched_from_there(repository, monkeypatch):
    fetched = []
    monkeypatch.setattr(models, "prepare_base", fetched.append)
    edit_manifest(repository, profile="gpt2", seed=42)
    profile = load_profile("gpt2")
    assert "base" in pull(profile, str(repository)) and not fetched
    shutil.rmtree(repository / "base")
    assert "base" not in pull(profile, str(repository)) and fetched == [profile]


# Plain use


def snippets(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_plain(server, folder: Path, code: str) -> str:
    """What the code prints, given the Hub and nothing of this project."""
    code += "\nimport sys\nassert not [name for name in sys.modules if name.split('.')[0] in ('rlhf', 'trl')]"
    command, environment = [sys.executable, "-I", "-c", code], client(server, folder / "home", folder)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_snippets_of_the_documentation_give_the_notebooks_answers_and_scores(server, published, finished, tmp_path):
    shown = snippets((outputs.ROOT / "docs/checkpoints.md").read_text(encoding="utf-8"))
    assert len(shown) == 3
    printed = run_plain(server, tmp_path, "\n".join(shown))
    tokenizer = models.load_tokenizer(finished)
    question = "How do I descale a kettle?"
    options = {"max_new_tokens": 96, "batch_size": 1}
    answer = generate_texts(models.load_policy(finished, "ppo_aligned"), tokenizer, [question], **options)[0]
    before = generate_texts(models.load_policy(finished, "sft_full"), tokenizer, [question], **options)[0]
    reward = score(models.load_reward_model(finished), tokenizer, [question], [answer], [True]).item()
    assert answer in printed and before in printed
    numbers = [float(line) for line in printed.splitlines() if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", line)]
    assert numbers == [pytest.approx(reward, abs=1e-4)]


def test_snippets_of_the_cards_load_what_the_notebooks_load(server, published, finished, tmp_path):
    """Told by a fixed combination of what each model makes of the same tokens."""
    keys = list(cards.published(finished, cards.read_run(finished)))
    code = "import torch\ntorch.set_num_threads(1)\n"
    for key in keys:
        name = "reward_model" if key == "reward_model" else "model"
        code += "\n".join(snippets(cards.card(finished, REPO, key).text))
        code += f"\nwith torch.no_grad():\n    logits = {name}.eval()(torch.arange(40)[None]).logits.flatten()\n"
        code += "print('sum', (logits * torch.arange(len(logits)).cos()).sum().item())\n"
    printed = [float(line.split()[1]) for line in run_plain(server, tmp_path, code).splitlines() if "sum " in line]
    for key, found in zip(keys, printed, strict=True):
        with torch.no_grad():
            reward = key == "reward_model"
            model = models.load_reward_model(finished) if reward else models.load_policy(finished, key)
            logits = model(torch.arange(40)[None]).logits.flatten()
        expected = (logits * torch.arange(len(logits)).cos()).sum().item()
        assert found == pytest.approx(expected, abs=1e-3), key
    assert len({round(value, 2) for value in printed}) == len(keys)


def test_adapter_on_a_base_of_the_hub_is_loaded_with_it_by_one_call(server, own_run, tmp_path):
    base = "user/tiny-base"
    folder = outputs.checkpoint_path(own_run, "base")
    server.commit(base, {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()})
    run = outputs.read_json(own_run, "run.json")
    outputs.update_run(own_run, settings=run["settings"] | {"model": base, "lab": None})
    repository = tmp_path / "repository"
    repository.mkdir()
    files = assemble(own_run, "user/on-a-base", repository)
    assert not any(name.startswith("base/") for name in files)
    server.commit("user/on-a-base", {name: (repository / name).read_bytes() for name in files})
    code = "import torch\n" + snippets(cards.card(own_run, "user/on-a-base", "sft_qlora").text)[0]
    code += "\nwith torch.no_grad():\n    logits = model.eval()(torch.arange(40)[None]).logits.flatten()\n"
    code += "print('sum', (logits * torch.arange(len(logits)).cos()).sum().item(), type(model).__name__)\n"
    *_, found, kind = run_plain(server, tmp_path, code).split()
    with torch.no_grad():
        logits = models.load_policy(own_run, "sft_qlora")(torch.arange(40)[None]).logits.flatten()
    expected = (logits * torch.arange(len(logits)).cos()).sum().item()
    assert float(found) == pytest.approx(expected, abs=1e-3) and kind == "GPT2LMHeadModel"


def test_card_of_the_repository_loads_the_aligned_policy_and_the_reward_model(finished):
    card = cards.card(finished, REPO)
    expected = [snippets(cards.card(finished, REPO, key).text)[0] for key in ("ppo_aligned", "reward_model")]
    assert snippets(card.text) == expected


def test_demo_page_answers_from_the_hub(server, published, tmp_path):
    code = f"import json\nfrom rlhf import demo\nanswerer, prompts = demo.load({REPO!r})\n"
    code += "print(json.dumps([len(prompts), *list(answerer.stream(prompts[0], 0.0, 8))[-1]]))"
    environment = client(server, tmp_path / "home", tmp_path)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    count, *shown = json.loads(done.stdout.splitlines()[-1])
    assert count and len(shown) == 6 and all(re.match(r"[+-]\d+\.\d\d", reward) for reward in shown[1::2])
