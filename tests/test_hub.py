"""Publishing and pulling with the Hub's real client against a local server; what goes up, and what an error says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf import cards, hub, models, outputs
from rlhf.generation import generate
from rlhf.profiles import load_profile
from rlhf.rewards import score

import httpx2
import pandas as pd
import pytest
import torch
from conftest import run_script
from hub_server import Hub
from huggingface_hub import ModelCard

REPO = "user/rlhf-gpt2"
COMPARED = ("rouge.csv", "behaviour.csv", "reward.csv", "kl.csv", "gold.csv", "paired.csv", "reward_probes.csv")


@pytest.fixture
def finished(smoke, monkeypatch):
    """The profile of the finished smoke run, whose outputs are read and not written."""
    monkeypatch.setenv("RLHF_OUTPUTS", str(smoke))
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
    code = f"{before}\nimport sys\nfrom rlhf import hub\nsys.exit(hub.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment, cwd=outputs.ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def published(server, smoke, tmp_path_factory) -> str:
    """The smoke run's checkpoints, published to the server; the commit."""
    done = run_hub(client(server, tmp_path_factory.mktemp("home"), smoke), "publish", REPO, "--upload")
    assert done.returncode == 0, done.stderr
    assert server.private[REPO] is True
    return server.branches[REPO]["main"]


# What goes up


@pytest.mark.slow
def test_dry_run_shows_the_files_and_sends_nothing(server, smoke, tmp_path):
    before = len(server.requests)
    done = run_hub(client(server, tmp_path, smoke, token=None), "publish", REPO)
    assert done.returncode == 0, done.stderr
    assert re.search(r"MB  sft_full_final/model\.safetensors", done.stdout)
    assert "Nothing was uploaded; add UPLOAD=1" in done.stdout
    assert len(server.requests) == before


@pytest.mark.slow
def test_published_are_all_stages_with_cards_and_nothing_that_can_hold_code(server, published):
    files = server.files(REPO)
    stages = {"base", "sft_full_final", "sft_qlora_final", "reward_model_final", "ppo_aligned_final"}
    folders = {name.split("/")[0] for name in files if "/" in name}
    assert stages < folders and len(folders) == len(stages) + 1  # and PPO's other policy
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".txt", ".md", ""}
    for name in [f"{folder}/README.md" for folder in folders] + ["README.md"]:
        card = ModelCard(files[name].decode())
        assert card.data.license == "mit" and card.text.strip().startswith("# ")
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= {
        name.split("/")[1] for name in files if name.startswith("reward_model_final/")
    }


@pytest.mark.slow
def test_no_path_of_this_machine_and_no_token_goes_up(server, published, smoke):
    for name, content in server.files(REPO).items():
        if not name.endswith(".safetensors"):
            text = content.decode()
            assert str(smoke) not in text and str(outputs.ROOT) not in text and "hf_test" not in text, name
            assert not re.search(r'"/(tmp|home|root|work|Users)/', text), name
    base = json.loads(server.files(REPO)["reward_model_final/adapter_config.json"])["base_model_name_or_path"]
    assert base == REPO


@pytest.mark.slow
def test_cards_quote_the_csvs_with_intervals(finished):
    text = str(cards.card(finished, REPO, "sft_full_final"))
    rouge = outputs.read_csv(finished, "rouge.csv")
    row = rouge[(rouge.model == "sft_full") & (rouge.metric == "rouge1")].iloc[0]
    assert f"| rouge1 | {row['mean']:.3f} | [{row.ci_low:.3f}, {row.ci_high:.3f}] | {row.n} |" in text
    results = {r.metric_name: r.metric_value for r in cards.card(finished, REPO, "sft_full_final").data.eval_results}
    assert results["ROUGE-1"] == pytest.approx(row["mean"], abs=1e-4)
    accuracy = outputs.read_csv(finished, "reward_model.csv").set_index("metric").value.accuracy
    model = cards.card(finished, REPO, "reward_model_final").data
    assert model.pipeline_tag == "text-classification" and model.library_name == "peft"
    assert [r.metric_value for r in model.eval_results] == [pytest.approx(accuracy, abs=1e-4)]
    aligned = cards.results(finished, "ppo_aligned_final")
    assert aligned.equals(cards.results(finished, cards.aligned(finished)))


@pytest.mark.slow
def test_card_of_the_repository_names_every_published_folder(finished):
    text = str(cards.card(finished, REPO))
    assert [stage for stage in cards.published_stages(finished) if f"- `{stage}/`: " not in text] == []


@pytest.mark.slow
def test_without_a_token_nothing_is_made_and_the_error_says_how_to_log_in(server, smoke, tmp_path):
    before = len(server.requests)
    done = run_hub(client(server, tmp_path, smoke, token=None), "publish", "user/other", "--upload")
    assert done.returncode == 2 and "hf auth login" in done.stderr and "HF_TOKEN" in done.stderr
    assert len(server.requests) == before


@pytest.mark.parametrize("name", ["", "no-owner", "a/b/c", "user/with space"])
def test_name_that_is_none_is_refused(profile, name):
    with pytest.raises(ValueError, match=r"give a name like user/rlhf-gpt2"):
        hub.publish(profile, name)


def test_stage_that_has_not_run_is_named_before_anything_goes_up(profile):
    outputs.write_json(profile, "run.json", {"ppo_aligned_final": "ppo_trl_final"})
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*base is missing; run 01_supervised_finetuning"):
        hub.publish(profile, REPO)


# What comes back


@pytest.mark.slow
def test_published_pulled_and_evaluated_gives_the_same_tables(server, published, smoke, tmp_path):
    environment = client(server, tmp_path / "home", tmp_path / "outputs")
    printed = run_script(tmp_path / "outputs", "run_notebooks.py", FROM=f"hub:{REPO}@{published}", **environment)
    assert f"Pulled from {REPO}" in printed
    ours, theirs = (folder / "evaluation" / "smoke" for folder in (smoke, tmp_path / "outputs"))
    for name in COMPARED:
        before, after = (pd.read_csv(folder / name) for folder in (ours, theirs))
        keys = [column for column in ("model", "metric", "probe") if column in before]
        pd.testing.assert_frame_equal(
            before.sort_values(keys, ignore_index=True), after.sort_values(keys, ignore_index=True), obj=name
        )
    run = json.loads((theirs / "run.json").read_text())
    assert run["pulled"] == {"from": REPO, "commit": published}


@pytest.mark.slow
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


@pytest.mark.slow
def test_only_safe_files_are_fetched_and_another_revision_is_another_commit(server, published, tmp_path):
    evil = server.commit(REPO, {"sft_full_final/pytorch_model.bin": b"pickle", "modeling.py": b"print()"})
    before = len(server.requests)
    done = run_hub(client(server, tmp_path / "home", tmp_path / "outputs"), "pull", REPO)
    assert done.returncode == 0, done.stderr
    asked = " ".join(path for _, path in server.requests[before:])
    assert evil in asked and "pytorch_model.bin" not in asked and "modeling.py" not in asked
    run = json.loads((tmp_path / "outputs" / "evaluation" / "smoke" / "run.json").read_text())
    assert run["pulled"]["commit"] == evil != published


@pytest.mark.slow
@pytest.mark.parametrize(("name", "revision"), [("user/nothing", None), (REPO, "no-such-branch")])
def test_repository_or_revision_that_is_not_there_is_named(server, published, tmp_path, name, revision):
    extra = ["--revision", revision] if revision else []
    done = run_hub(client(server, tmp_path / "home", tmp_path / "outputs"), "pull", name, *extra)
    assert done.returncode == 2 and f"repository '{name}'" in done.stderr and "can't be fetched" in done.stderr
    assert revision is None or f"revision '{revision}'" in done.stderr
    assert not (tmp_path / "outputs" / "checkpoints").exists()


@pytest.fixture
def local_copy(finished, tmp_path, monkeypatch):
    """What is published, as a local folder; the outputs go elsewhere."""
    folder = tmp_path / "repository"
    folder.mkdir()
    hub.assemble(finished, REPO, folder)
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "pulled"))
    return folder


@pytest.mark.slow
def test_stage_that_a_repository_lacks_is_named_and_nothing_is_written(finished, local_copy):
    shutil.rmtree(local_copy / "reward_model_final")
    with pytest.raises(ValueError, match="lacks reward_model_final; publish it again"):
        hub.pull(finished, str(local_copy))
    assert not outputs.checkpoint_path(finished, "base").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value"), [("profile", "gpt2"), ("seed", 7)])
def test_checkpoints_of_another_run_are_refused(finished, local_copy, field, value):
    manifest = json.loads((local_copy / hub.MANIFEST).read_text())
    (local_copy / hub.MANIFEST).write_text(json.dumps(manifest | {field: value}))
    with pytest.raises(ValueError, match=rf"made with {field} {value}, not .*RLHF_{field.upper()}={value}"):
        hub.pull(finished, str(local_copy))


@pytest.mark.slow
def test_folder_that_publish_did_not_make_is_refused(finished, tmp_path):
    with pytest.raises(ValueError, match=r"has no rlhf\.json"):
        hub.pull(finished, str(tmp_path))


def test_local_folder_is_taken_as_it_is(tmp_path):
    assert hub.fetch(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("error", [httpx2.ConnectError("no route"), FileNotFoundError("not cached"), ValueError("bad")])
def test_repository_that_does_not_come_is_an_error_that_says_what_to_do(monkeypatch, error):
    def snapshot_download(name, **_):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "go_offline_without_connection", lambda: None)
    with pytest.raises(ConnectionError, match=r"'user/name' at revision 'v1' can't be fetched .*local folder"):
        hub.fetch("user/name", revision="v1")


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


@pytest.mark.slow
def test_snippets_of_the_readme_give_the_notebooks_answers_and_scores(server, published, finished, tmp_path):
    readme = snippets((outputs.ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(readme) == 3
    printed = run_plain(server, tmp_path, "\n".join(readme))
    tokenizer = models.load_tokenizer(finished)
    question = "How do I descale a kettle?"
    options = {"max_new_tokens": 96, "batch_size": 1}
    answer = generate(models.load_ppo(finished), tokenizer, [question], **options)[0]
    before = generate(models.load_sft(finished), tokenizer, [question], **options)[0]
    reward = score(models.load_reward_model(finished), tokenizer, [question], [answer]).item()
    assert answer in printed and before in printed
    numbers = [float(line) for line in printed.splitlines() if re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", line)]
    assert numbers == [pytest.approx(reward, abs=1e-4)]


@pytest.mark.slow
def test_snippets_of_the_cards_load_what_the_notebooks_load(server, published, finished, tmp_path):
    """Told by a fixed combination of what each model makes of the same tokens."""
    stages = cards.published_stages(finished)
    code = "import torch\ntorch.set_num_threads(1)\n"
    for stage in stages:
        name = "reward_model" if stage == "reward_model_final" else "model"
        code += "\n".join(snippets(cards.loading(finished, REPO, stage)))
        code += f"\nwith torch.no_grad():\n    logits = {name}.eval()(torch.arange(40)[None]).logits.flatten()\n"
        code += "print('sum', (logits * torch.arange(len(logits)).cos()).sum().item())\n"
    printed = [float(line.split()[1]) for line in run_plain(server, tmp_path, code).splitlines() if "sum " in line]
    load = {
        "base": models.load_base,
        "sft_full_final": models.load_sft,
        "sft_qlora_final": lambda profile: models.load_sft(profile, "qlora"),
        "reward_model_final": models.load_reward_model,
        "ppo_trl_final": lambda profile: models.load_ppo(profile, "trl"),
        "ppo_scratch_final": lambda profile: models.load_ppo(profile, "scratch"),
        "ppo_aligned_final": models.load_ppo,
    }
    for stage, found in zip(stages, printed, strict=True):
        with torch.no_grad():
            logits = load[stage](finished).eval()(torch.arange(40)[None]).logits.flatten()
        expected = (logits * torch.arange(len(logits)).cos()).sum().item()
        assert found == pytest.approx(expected, abs=1e-3), stage
    assert len({round(value, 2) for value in printed}) == len(stages)


@pytest.mark.slow
def test_demo_page_answers_from_the_hub(server, published, smoke, tmp_path):
    code = f"import app, json\nanswerer, prompts = app.load({REPO!r})\n"
    code += "print(json.dumps([len(prompts), *list(answerer.answer(prompts[0], 0.0, 8))[-1]]))"
    environment = client(server, tmp_path / "home", tmp_path) | {"PYTHONPATH": str(outputs.ROOT / "demo")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    count, *shown = json.loads(done.stdout.splitlines()[-1])
    assert count == 8 and len(shown) == 6 and all(re.match(r"[+-]\d+\.\d\d", reward) for reward in shown[1::2])
