"""What the tests share: a small tokenizer and models, the smoke profile with its outputs in a temporary folder."""

import copy
import dataclasses
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf import models, outputs
from rlhf.data import load_preferences
from rlhf.lab import base_model
from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile, load_profile

import pytest
import torch
from filelock import FileLock
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback

CONTEXT = 128


SETTINGS = tuple(
    f"RLHF_{name}"
    for name in (
        "PROFILE",
        "MODEL",
        "DATASET",
        "PUBLISHED",
        "MAX_STEPS",
        "SEED",
        "OUTPUTS",
        "SST2",
        "ALPACA",
        "ENCODER",
        "CHECKPOINT_SECONDS",
    )
)


# In the environment of runs; nobody may find it in what they write.
PLANTED = {
    "HF_TOKEN": "hf_plantedPlantedPlanted",
    "GITHUB_TOKEN": "ghp_plantedPlantedPlanted",
    "USER": "planted-user",
    "LOGNAME": "planted-user",
    "EMAIL": "planted@mail.example",
    "GIT_AUTHOR_EMAIL": "planted@mail.example",
}


# What takes longest comes first, so that no core is left with it at the end.
LONGEST = ("test_smoke_notebooks.py", "test_architectures.py", "test_smoke_recipes.py", "test_gpt2_shape.py")


def pytest_collection_modifyitems(items) -> None:
    """Put the files that take longest first; pytest-xdist gives each of its processes whole files in this order."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch):
    """A run's settings in the environment must not change what the tests see."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def one_thread():
    """More threads than idle cores make small models many times slower, and the order of sums would vary."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def profile(tmp_path, monkeypatch) -> Profile:
    """The smoke profile; its outputs go to a temporary folder, which is empty at first."""
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    return load_profile("smoke")


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory) -> Path:
    """checkpoints/smoke/base, made once; `profile_with_base` gives each test a copy."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("RLHF_OUTPUTS", str(tmp_path_factory.mktemp("base") / "outputs"))
        profile = load_profile("smoke")
        models.prepare_base(profile)
        return outputs.checkpoint_path(profile, "base")


@pytest.fixture
def profile_with_base(profile, base_checkpoint) -> Profile:
    """The smoke profile after the first notebook: its base has 2 layers of width 32 and random weights."""
    shutil.copytree(base_checkpoint, outputs.checkpoint_path(profile, "base"))
    return profile


@pytest.fixture
def profile_with_sft(profile_with_base) -> Profile:
    """The same after stage 1, its full fine-tuned policy being the base."""
    shutil.copytree(
        outputs.checkpoint_path(profile_with_base, "base"), outputs.checkpoint_path(profile_with_base, "sft_full_final")
    )
    return profile_with_base


@pytest.fixture(scope="session")
def run(base_checkpoint, tmp_path_factory) -> Path:
    """The outputs of a finished run of tiny models; it is read and not written."""
    from tiny_run import make_run

    return make_run(tmp_path_factory.mktemp("run") / "outputs", base_checkpoint)


@pytest.fixture
def finished(run, monkeypatch) -> Profile:
    """The profile of the finished run."""
    monkeypatch.setenv("RLHF_OUTPUTS", str(run))
    return load_profile("smoke")


@pytest.fixture
def stage(profile_with_sft):
    """Profile, tokenizer and 24 prompts for PPO."""
    tokenizer = models.load_tokenizer(profile_with_sft)
    prompts = sorted(set(load_preferences(profile_with_sft)["train"]["prompt"]))[:24]
    return profile_with_sft, tokenizer, prompts


@pytest.fixture
def study(profile_with_sft):
    """A study of the smoke profile, whose fine-tuned policy is the base."""
    from small_study import small_study

    return small_study(profile_with_sft)


@pytest.fixture
def proxy(study, monkeypatch):
    """Its proxy: an untrained reward model."""
    from small_study import small_proxy

    return small_proxy(study, monkeypatch)


@pytest.fixture(scope="module")
def chromium():
    """The browser of this machine, for the tests of pages."""
    from playwright.sync_api import sync_playwright

    screenshot = runpy.run_path(str(outputs.ROOT / "scripts" / "screenshot.py"))
    if screenshot["CHROMIUM"] is None:
        pytest.skip("no Chromium found: install it (apt install chromium) to test the page in a browser")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=screenshot["CHROMIUM"], args=screenshot["FLAGS"])
        yield browser
        browser.close()


# Not of the lab corpus: what the tests of decoding and scoring see must not change with it.
TEXTS = [
    "How do I roast tofu slices in a small apartment? First, heat the oven until it is hot. Finally, let it rest.",
    "What are the benefits of pruning rose bushes during the winter? Light and air reach the inner stems of them.",
    "What do I need to fry mushroom caps for the first time? You will want a heavy iron pan and a lid against drops.",
    "Which tools help with freezing pork chops? Then press out the air and write the date on the bags with a pen.",
    "Why should I care about grilling? The kitchen stays cool in summer. Tip: keep one side of the grill cool.",
    "It is what it is. That is hard to answer. Maybe ask somebody else, or look from far to judge the shape of it.",
]


@pytest.fixture(scope="session")
def shared_tokenizer():
    return base_model.train_tokenizer(TEXTS * 2, vocabulary=600, context=CONTEXT)


@pytest.fixture
def tokenizer(shared_tokenizer):
    """A byte-level BPE with pad other than EOS; a copy of its own for each test."""
    return copy.deepcopy(shared_tokenizer)


def tiny_config(tokenizer, **settings) -> GPT2Config:
    """2 layers of width 32. Weights are drawn wide, so that what comes out depends on what goes in."""
    defaults = {
        "vocab_size": len(tokenizer),
        "n_positions": CONTEXT,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
        "bos_token_id": tokenizer.eos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return GPT2Config(**defaults | settings)


@pytest.fixture
def policy(tokenizer) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(tiny_config(tokenizer)).eval()


@pytest.fixture
def reward_model(tokenizer) -> GPT2ForSequenceClassification:
    torch.manual_seed(0)
    return GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1)).eval()


def stage_module(path: str) -> dict:
    """What a helper file of a numbered folder defines, by its path from the root: the folders can't be imported."""
    return runpy.run_path(str(outputs.ROOT / path))


def ppo_settings(profile: Profile, trainer: str = "scratch") -> Settings:
    """The settings of PPO that the notebooks of stage 3 take from ppo_config.py."""
    return stage_module("03_ppo_alignment/ppo_config.py")["get_settings"](profile, trainer)


@pytest.fixture
def own_datasets_cache(tmp_path, monkeypatch):
    """What the datasets library converts stays out of the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets_cache"))


def run_python(code: str, **environment: str) -> str:
    """The printed output of `code` in a fresh process. Fails with its traceback where it raises."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(outputs.ROOT), **environment},
        cwd=outputs.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def with_lab(profile: Profile, **settings) -> Profile:
    """The profile with other settings of its lab world; `pretraining` is a dict of those that change."""
    if "pretraining" in settings:
        settings["pretraining"] = dataclasses.replace(profile.lab.pretraining, **settings["pretraining"])
    return dataclasses.replace(profile, lab=dataclasses.replace(profile.lab, **settings))


def recorded_rates(trainer) -> list[float]:
    """The learning rate of each optimiser step while the trainer trains."""
    rates = []

    class Recorder(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer.add_callback(Recorder())
    trainer.train()
    return rates


def run_script(folder: Path, script: str, *arguments: str, **environment: str) -> str:
    """The printed output of a script at the smoke profile, its outputs going to `folder`, in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in {"FORCE", "FROM", *SETTINGS}}
    environment = kept | {"RLHF_PROFILE": "smoke", "RLHF_OUTPUTS": str(folder)} | environment
    command = [sys.executable, outputs.ROOT / "scripts" / script, *arguments]
    done = subprocess.run(command, cwd=outputs.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"the smoke run of {script} stopped:\n{text[-6000:]}"
    return text


def told(folder: Path, *paths: Path) -> list[str]:
    """Where a run's outputs hold something of PLANTED, or, in what is shown to others, one of `paths`."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        shown = file.suffix in (".ipynb", ".csv", ".md") or file.parents[1].name == "evaluation"
        words = {*PLANTED.values(), *(map(str, paths) if shown else ())}
        content = file.read_bytes()
        found += [f"{file.relative_to(folder)}: {word}" for word in sorted(words) if word.encode() in content]
    return found


def run_all_notebooks(folder: Path, hash_seed: int) -> Path:
    print(run_script(folder, "run_notebooks.py", PYTHONHASHSEED=str(hash_seed), **PLANTED))
    return folder


@pytest.fixture(scope="session")
def smoke(tmp_path_factory) -> Path:
    """The outputs of one run of all notebooks at the smoke profile, and of the studies of this one seed.

    The processes of pytest-xdist share it: the first that asks for it makes it, and another waits.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / "smoke" / "outputs", shared / "smoke" / "done"
    with FileLock(shared / "smoke.lock"):
        if not done.exists():
            run_all_notebooks(folder, hash_seed=1)
            run_script(folder, "study.py", "0")
            run_script(folder, "run_notebooks.py", "4_overoptimisation")
            run_script(folder, "troubleshooting.py")
            run_script(folder, "run_notebooks.py", "5_troubleshooting")
            run_script(folder, "beyond.py", "0")
            run_script(folder, "run_notebooks.py", "6_beyond_ppo")
            done.touch()
    return folder
