"""Several processes: what each takes of a step, the scripts of `make script`, and that two do what one does."""

import gc
import json
import os
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

from rlhf import launch, models, outputs, runtime
from rlhf.ppo.trl import make_trainer
from rlhf.training import StageTrainer, run_arguments, shared_batch

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.data_loader import BatchSamplerShard
from conftest import SETTINGS, ppo_settings, run_python, stage_module
from safetensors.torch import load_file
from torch.utils.data import BatchSampler
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.trainer_pt_utils import LengthGroupedSampler

CONFIGS = sorted((outputs.ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize(
    ("size", "accumulation", "processes", "part"),
    [
        (16, 1, 1, (16, 1)),
        (16, 1, 2, (8, 1)),
        (4, 4, 1, (4, 4)),
        (4, 4, 2, (4, 2)),
        (4, 4, 8, (2, 1)),
        (4, 3, 2, (3, 2)),
    ],
)
def test_a_step_takes_as_many_examples_on_any_number_of_processes(monkeypatch, size, accumulation, processes, part):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert shared_batch(size, accumulation) == part
    assert part[0] * part[1] * processes == size * accumulation


@pytest.mark.parametrize("processes", [2, 8])
def test_a_step_takes_the_same_examples_grouped_by_length_on_any_number_of_processes(monkeypatch, processes):
    lengths = [7 * i % 60 for i in range(160)]

    def steps(processes):
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        size, accumulation = shared_batch(4, 4)
        trainer = SimpleNamespace(args=SimpleNamespace(world_size=processes))
        examples = [[] for _ in range(10)]  # of each step
        for rank in range(processes):
            torch.manual_seed(0)
            sampler = LengthGroupedSampler(size * accumulation, lengths=lengths)
            sampler = BatchSampler(StageTrainer._of_all_processes(trainer, sampler), size, drop_last=False)
            for i, batch in enumerate(BatchSamplerShard(sampler, processes, rank)):
                examples[i // accumulation] += batch
        return [sorted(step) for step in examples]

    assert steps(processes) == steps(1)
    assert all(len(step) == 16 for step in steps(1))


def test_a_step_that_cannot_be_shared_equally_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="3 processes can't share the 16 examples of a step"):
        shared_batch(4, 4)


def test_several_gpus_are_for_several_processes(profile, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_arguments(profile, "run")["seed"] == profile.seed


def test_a_launcher_reaches_a_script_that_asks_for_it():
    names = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "2",
        "ACCELERATE_USE_CPU": "1",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }
    code = f"import os, json, rlhf; print(json.dumps({{n: os.environ[n] for n in {list(names)}}}))"
    assert json.loads(run_python(code, RLHF_LAUNCHED="1", **names)) == names


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configuration_is_as_accelerate_writes_it(path):
    config = load_config_from_file(str(path))  # refuses a key that it does not know
    assert config.to_dict() == yaml.safe_load(path.read_text(encoding="utf-8"))


def test_there_is_a_configuration_for_each_way():
    kinds = {path.stem: load_config_from_file(str(path)).distributed_type for path in CONFIGS}
    deepspeed = {"zero2": "DEEPSPEED", "zero3": "DEEPSPEED"}
    assert kinds == {"one_gpu": "NO", "ddp": "MULTI_GPU", "fsdp2": "FSDP"} | deepspeed
    stages = [load_config_from_file(str(CONFIGS[i])).deepspeed_config["zero_stage"] for i in (-2, -1)]
    assert stages == [2, 3]


@pytest.mark.parametrize("stage", launch.STAGES)
def test_script_is_written_once_with_its_profile_and_the_helpers_that_it_imports(profile, stage):
    path = launch.write_script(profile, stage)
    assert path == outputs.root() / "scripts" / "smoke" / stage / "train.py"
    text = path.read_text(encoding="utf-8")
    for name, value in ({"PROFILE": "smoke"} | launch.STAGES[stage][1]).items():
        assert f'\n{name} = "{value}"' in text
    for helper in {"prepare_data", "ppo_config"}:
        assert f"from {helper} import" not in text or path.with_name(f"{helper}.py").exists()
    assert compile(text, str(path), "exec")
    with pytest.raises(FileExistsError, match=f"scripts/smoke/{stage} is there and may hold changes"):
        launch.write_script(profile, stage)


def test_stage_that_is_none_is_refused(profile):
    with pytest.raises(ValueError, match="STAGE='dpo' is no stage; choose one of sft, sft_qlora, reward, ppo"):
        launch.write_script(profile, "dpo")


def test_memory_of_the_documentation_is_what_its_rules_give():
    table = stage_module("scripts/memory_table.py")
    page = (outputs.ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert table["memory_table"]() in page and table["activation_table"]() in page
    assert (table["PPO"], table["SHARE"]) == (models.BYTES_PER_WEIGHT, models.SHARE_FOR_WEIGHTS)


STOP = """
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                raise KeyboardInterrupt("after two steps")

    trainer.add_callback(Stop())
"""
DROPOUT = """
    for module in model.modules():
        if hasattr(module, "p"):
            module.p = 0.2
"""


def start(script, folder, processes: int, config: str = "ddp", fails: str = "") -> str:
    """Run a script in so many processes, in float32: bfloat16 would round the sums of parts of a batch otherwise.

    Returns what the processes print. `fails`: the error that ends them.
    """
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment = kept | {"RLHF_OUTPUTS": str(folder), "PYTHONPATH": str(outputs.ROOT), "OMP_NUM_THREADS": "1"}
    environment["ATEN_CPU_CAPABILITY"] = "avx2"  # with it torch does not say that it has bfloat16
    environment["RLHF_CHECKPOINT_SECONDS"] = "0"
    config = outputs.ROOT / "accelerate_configs" / f"{config}.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command += ["--num_processes", str(processes), "--main_process_port", "0", script]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == bool(fails) and fails in done.stderr, done.stderr[-5000:]
    return done.stdout


@pytest.fixture
def alone(monkeypatch, profile_with_sft):
    """Runs a stage's script in this process; the profile has a base and a fine-tuned policy."""
    monkeypatch.setattr(runtime, "bf16_is_native", lambda *_: False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setenv("RLHF_LAUNCHED", "1")

    def run(script):
        monkeypatch.syspath_prepend(script.parent)
        for helper in ("prepare_data", "ppo_config"):
            monkeypatch.delitem(sys.modules, helper, raising=False)
        runpy.run_path(str(script), run_name="__main__")

    return run


def before_training(script, code: str):
    """A copy of a stage's script that runs `code` once its trainer is made."""
    text, train = script.read_text(encoding="utf-8"), "    trainer.train()\n"
    assert text.count(train) == 1
    changed = script.with_name("changed.py")
    changed.write_text(text.replace(train, code + train), encoding="utf-8")
    return changed


def two_and_one(profile, stage, tmp_path, alone, config="ddp"):
    """The outputs of a stage by two processes, which are interrupted and go on, and by one that is not."""
    script, two = launch.write_script(profile, stage), tmp_path / "two"
    shutil.copytree(outputs.root() / "checkpoints", two / "checkpoints")
    start(before_training(script, STOP), two, 2, config, fails="after two steps")
    assert "goes on after step 2 of 4, " in start(script, two, 2, config)
    assert not (two / "checkpoints" / "smoke" / "training").exists()
    alone(script)
    return two, outputs.root()


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_no_model_outlives_the_group_of_the_processes(profile_with_sft, monkeypatch, alone, stage):
    def models_alive():
        return {id(it): it for it in gc.get_objects() if isinstance(it, PreTrainedModel)}

    gc.collect()
    before, left = models_alive(), []
    monkeypatch.setattr(PartialState, "destroy_process_group", lambda _: left.append(models_alive().keys() - before))
    alone(launch.write_script(profile_with_sft, stage))
    assert left == [set()]


def curve(folder, name):
    return pd.read_csv(folder / "evaluation" / "smoke" / name)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
def test_two_processes_fine_tune_as_one_does(profile_with_sft, tmp_path, alone, config):
    two, one = two_and_one(profile_with_sft, "sft", tmp_path, alone, config)
    curves = [curve(folder, "sft_loss.csv") for folder in (one, two)]
    assert list(curves[0].split) == list(curves[1].split)
    train = [frame[frame.split == "train"].loss.to_numpy() for frame in curves]
    assert len(train[0]) == 4 and train[1] == pytest.approx(train[0], abs=2e-5)
    held = [frame[frame.split == "validation"].loss.to_numpy() for frame in curves]
    assert held[1] == pytest.approx(held[0], abs=1e-3)  # two of its 30 rows are taken twice
    weights = [load_file(folder / "checkpoints/smoke/sft_full_final/model.safetensors") for folder in (one, two)]
    assert all(torch.allclose(weights[1][name], weights[0][name], atol=1e-5) for name in weights[0])
    AutoModelForCausalLM.from_pretrained(two / "checkpoints/smoke/sft_full_final")
    assert len(list((two / "logs").rglob("events.out.tfevents.*"))) == 2  # of the first process, before and after


@pytest.mark.slow
def test_each_process_goes_on_with_its_own_dropout(profile_with_sft, tmp_path):
    script, found = launch.write_script(profile_with_sft, "sft"), []
    for code in ("", STOP):
        folder = tmp_path / f"stops_{bool(code)}"
        shutil.copytree(outputs.root() / "checkpoints", folder / "checkpoints")
        if code:
            start(before_training(script, DROPOUT + code), folder, 2, fails="after two steps")
        assert ("goes on after step 2 of 4, " in start(before_training(script, DROPOUT), folder, 2)) == bool(code)
        found.append(load_file(folder / "checkpoints/smoke/sft_full_final/model.safetensors"))
    assert all(torch.equal(found[1][name], weight) for name, weight in found[0].items())


@pytest.mark.slow
def test_two_processes_train_the_reward_model_as_one_does(profile_with_sft, tmp_path, alone):
    two, one = two_and_one(profile_with_sft, "reward", tmp_path, alone)
    curves = [curve(folder, "reward_curve.csv").query("split == 'train'") for folder in (one, two)]
    for column in ("loss", "accuracy"):
        assert curves[1][column].to_numpy() == pytest.approx(curves[0][column].to_numpy(), abs=2e-5)
    name = "checkpoints/smoke/reward_model_final/adapter_model.safetensors"
    weights = [load_file(folder / name) for folder in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.allclose(weights[1][name], weights[0][name], atol=1e-4) for name in weights[0])


@pytest.mark.slow
def test_two_processes_align_the_policy_and_the_first_writes(run, profile, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(run / "checkpoints", two / "checkpoints")
    shutil.rmtree(two / "checkpoints/smoke/ppo_trl_final")
    start(launch.write_script(profile, "ppo"), two, 2)
    aligned = curve(two, "ppo_curve.csv")
    settings = json.loads((two / "evaluation/smoke/run.json").read_text(encoding="utf-8"))["ppo_trl"]
    assert list(aligned.episode) == [settings["batch_size"] * (i + 1) for i in range(settings["updates"])]
    assert np.isfinite(aligned.drop(columns=["model", "explained_variance"]).to_numpy()).all()
    assert aligned.kl[0] == pytest.approx(0, abs=1e-3)
    start_of, trained = (
        AutoModelForCausalLM.from_pretrained(two / "checkpoints/smoke" / name).state_dict()
        for name in ("sft_full_final", "ppo_trl_final")
    )
    assert start_of.keys() == trained.keys() and not all(torch.equal(trained[name], start_of[name]) for name in trained)


def test_trl_is_refused_under_fsdp(profile, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="PPO can't train with FSDP"):
        make_trainer(profile, ppo_settings(profile, "trl"), *[None] * 6)
