"""A training that is interrupted goes on to the same numbers, from a checkpoint that is whole and its own."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from rlhf import models, outputs, resume, runtime, sft
from rlhf.profiles import load_profile
from rlhf.reward import classifier
from rlhf.reward.training import make_trainer as make_reward_trainer
from rlhf.training import logged

import pandas as pd
import pytest
import torch
from datasets import Dataset
from ppo_stage import SETTINGS, make
from transformers import TrainerCallback

WORDS = ["good", "bad", "film", "what", "one", "and", "again", "cook", "roast", "tofu", "slices", "heat", "oven"]


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """A checkpoint with every logged loss, and float32."""
    monkeypatch.setenv("RLHF_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(runtime, "bf16_is_native", lambda *_: False)


def small_stage(profile):
    """A profile with dropout and two batches for each step, after fine-tuning, and its tokenizer."""
    changes = {"batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 3, "evaluations": 3}
    lora = dataclasses.replace(profile.sft.lora, dropout=0.2)
    parts = {part: dataclasses.replace(getattr(profile, part), lora=lora, **changes) for part in ("sft", "reward")}
    return dataclasses.replace(profile, max_steps=None, **parts), models.load_tokenizer(profile)


@pytest.fixture
def small(profile_with_sft):
    return small_stage(profile_with_sft)


def rows_of(tokenizer, count: int) -> Dataset:
    """Examples of many lengths."""
    texts = [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + 5 * i % 13)) for i in range(count)]
    return sft.tokenize({"prompt": ["### Response:\n"] * count, "completion": texts}, tokenizer)


def sft_trainer(profile, tokenizer, method="full", rate=1e-3, count=17):
    model, adapter = sft.start_model(profile, method)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    train, validation = rows_of(tokenizer, count), rows_of(tokenizer, 6)
    options = {"learning_rate": rate, "epochs": 3, "adapter": adapter}
    return sft.make_trainer(profile, "sft_test", model, tokenizer, train, validation, **options)


def qlora_trainer(profile, tokenizer):
    return sft_trainer(profile, tokenizer, "qlora")


def reward_trainer(profile, tokenizer):
    ids = rows_of(tokenizer, 24)["input_ids"]
    pairs = Dataset.from_dict({"chosen_ids": ids[:20], "rejected_ids": ids[4:]})
    return make_reward_trainer(profile, models.new_reward_model(profile, 0), tokenizer, pairs, pairs.select(range(4)))


def label_trainer(profile, tokenizer):
    labelled = Dataset.from_dict({"input_ids": rows_of(tokenizer, 30)["input_ids"], "labels": [0, 1] * 15})
    model = classifier.with_adapter(profile, models.new_reward_model(profile, 0))
    return classifier.make_trainer(profile, "labels", model, tokenizer, labelled, 1e-3)


class At(TrainerCallback):
    """Does something before the step that follows `after` steps."""

    def __init__(self, after: int, act):
        self.after, self.act = after, act

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.after:
            self.act()

    def on_train_end(self, args, state, control, **_):
        if state.global_step == self.after:
            self.act()


def stop():
    raise KeyboardInterrupt


def interrupted(trainer, after: int):
    trainer.add_callback(At(after, stop))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def result(trainer):
    """The weights that learn, and the log but for what it says of seconds."""
    log = [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]
    return {name: weight.clone() for name, weight in resume.trained(trainer.model).items()}, log


def assert_same(first, second):
    assert first[1] == second[1] and first[0].keys() == second[0].keys()
    assert all(torch.equal(weight, second[0][name]) for name, weight in first[0].items())


KINDS = {"full": sft_trainer, "qlora": qlora_trainer, "reward": reward_trainer, "labels": label_trainer}


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_to_the_same_weights_and_log(small, kind, capsys):
    new = KINDS[kind]
    whole = new(*small)
    steps = whole.args.max_steps
    torch.rand(3)
    whole.train()
    expected = result(whole)
    outputs.forget_training(small[0])
    places = (1, steps // 2, steps - 1, steps)  # in the first pass over the data and, of fine-tuning, in later ones
    for after in places:
        interrupted(new(*small), after)
    assert resume.newest(Path(whole.args.output_dir)).name == f"step_{steps - 1:06d}"
    torch.rand(5)
    last = new(*small)
    last.train()
    assert_same(expected, result(last))
    said = capsys.readouterr().out
    assert [f"goes on after step {after} of {steps}" in said for after in places] == [True] * 3 + [False]
    assert expected[1] and any("eval_loss" in entry for entry in expected[1]) != (kind == "labels")


def test_interruption_between_two_passes_over_the_data_and_again_in_the_second(small):
    whole = sft_trainer(*small)
    whole.train()
    expected = result(whole)
    outputs.forget_training(small[0])
    for after in (5, 7):  # of 5 steps in a pass
        interrupted(sft_trainer(*small), after)
    last = sft_trainer(*small)
    last.train()
    assert_same(expected, result(last))


def test_checkpoints_change_no_number_and_draw_nothing(small, monkeypatch):
    results, states = [], []
    for seconds in ("0", "1e9"):
        outputs.forget_training(small[0])
        monkeypatch.setenv("RLHF_CHECKPOINT_SECONDS", seconds)
        runtime.seed_everything(4)
        trainer = sft_trainer(*small)
        trainer.train()
        results.append(result(trainer))
        states.append(runtime.generator_states())
    assert_same(*results)
    assert states[0] == states[1]


def test_ended_training_is_not_repeated_by_another_process(small, capsys, monkeypatch):
    first = sft_trainer(*small)
    first.train()
    expected, started = result(first), []
    monkeypatch.setattr(sft._SFTTrainer, "_run_epoch", lambda *_, **__: started.append(1))
    monkeypatch.setattr(resume.os, "getpid", lambda: 1)
    other = sft_trainer(*small)
    other.train()
    assert not started
    assert_same(expected, result(other))
    assert other.model.training == first.model.training
    assert "sft_test goes on after step" in capsys.readouterr().out


def test_ended_training_is_repeated_by_the_process_that_ended_it(small, capsys):
    first, again = sft_trainer(*small), sft_trainer(*small)
    first.train()
    again.train()
    assert "goes on" not in capsys.readouterr().out
    assert_same(result(first), result(again))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda small: sft_trainer(*small, rate=2e-3), "other settings"),
        (lambda small: sft_trainer(*small, count=18), "training data"),
        (lambda small: sft_trainer(dataclasses.replace(small[0], seed=1), small[1]), "other settings"),
    ],
)
def test_checkpoint_of_other_settings_or_data_is_left_alone_with_a_line(small, capsys, other, said):
    interrupted(sft_trainer(*small), 1)
    trainer = other(small)
    interrupted(trainer, 0)
    out = capsys.readouterr().out
    assert "sft_test starts over: outputs/checkpoints/smoke/training/sft_test/step_000001 is of" in out and said in out


def test_checkpoint_from_other_start_weights_or_code_is_left_alone(small, monkeypatch, capsys):
    interrupted(sft_trainer(*small), 1)
    other = sft_trainer(*small)
    with torch.no_grad():
        other.model.transformer.h[0].mlp.c_fc.bias[0] += 1e-3
    interrupted(other, 0)
    assert "is of other weights." in capsys.readouterr().out
    monkeypatch.setattr(resume, "VERSIONS", ["torch 1.0"])
    interrupted(sft_trainer(*small), 0)
    assert "is of other code." in capsys.readouterr().out


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    changed = {"cut off": content[:-9], "changed": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]}
    file.unlink() if how == "missing" else file.write_bytes(changed[how])
    outputs._sha256.cache_clear()  # as in another process


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", "trainer_state.json"])
@pytest.mark.parametrize("how", ["missing", "cut off", "changed"])
def test_checkpoint_that_is_not_whole_is_not_read(tmp_path, name, how):
    path, tensors = tmp_path / "step_000001", {"a": torch.arange(9.0)}
    documents = {"state.json": {"of": {}, "step": 1}, "trainer_state.json": {"log_history": []}}
    resume.write(path, documents, weights=tensors, optimizer={})
    state, read = resume.read(path)
    assert state == documents["state.json"] and torch.equal(read["weights"]["a"], tensors["a"])
    spoil(path / name, how)
    with pytest.raises(ValueError, match=rf"step_000001 can't be read \({name} "):
        resume.read(path)


def test_training_whose_checkpoint_is_not_whole_starts_over_with_a_line(small, capsys):
    interrupted(sft_trainer(*small), 2)
    spoil(resume.newest(outputs.training_dir(small[0]) / "sft_test") / "optimizer.safetensors", "cut off")
    interrupted(sft_trainer(*small), 0)
    assert "sft_test starts over: outputs/checkpoints/smoke/training/sft_test/step_000002 can't be read (opt" in (
        capsys.readouterr().out
    )


def test_only_the_last_checkpoint_is_kept_and_a_measured_run_leaves_none(small):
    trainer = sft_trainer(*small)
    trainer.train()
    names = [path.name for path in (outputs.training_dir(small[0]) / "sft_test").iterdir()]
    assert names == [f"step_{trainer.args.max_steps:06d}_end"]
    examples = rows_of(small[1], 16)
    sft.measure_cost(small[0], "full", small[1], examples, steps=2)
    assert not list((outputs.training_dir(small[0]) / "cost_full").iterdir())


def test_search_that_was_interrupted_trains_no_finished_rate_again(small, monkeypatch, capsys):
    profile, tokenizer = small
    data = rows_of(tokenizer, 40), rows_of(tokenizer, 6)
    profile = dataclasses.replace(profile, sft=dataclasses.replace(profile.sft, search_share=0.5))
    whole = sft.search_learning_rate(profile, "full", tokenizer, *data)
    outputs.forget_training(profile)
    train, trainings = sft._SFTTrainer.train, []

    def counted(self):
        trainings.append(self.args.learning_rate)
        if len(trainings) == 2:
            self.add_callback(At(2, stop))
        return train(self)

    monkeypatch.setattr(sft._SFTTrainer, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        sft.search_learning_rate(profile, "full", tokenizer, *data)
    monkeypatch.setattr(resume.os, "getpid", lambda: 1)
    begun = []
    monkeypatch.setattr(resume.Resumable, "_run_epoch", counting(resume.Resumable._run_epoch, begun))
    again = sft.search_learning_rate(profile, "full", tokenizer, *data)
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert begun == [profile.sft.full_learning_rates[1]]
    assert "search_full_0.001 goes on after step 5 of 5" in capsys.readouterr().out


def counting(method, calls):
    def counted(self, *args, **kwargs):
        calls.append(self.args.learning_rate)
        return method(self, *args, **kwargs)

    return counted


def test_full_disk_is_said_before_anything_is_trained(small, stage, tmp_path, monkeypatch):
    trainers = sft_trainer(*small), make(stage, checkpoints=tmp_path)
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    for trainer in trainers:
        with pytest.raises(OSError, match=r"0 MB are free for .*take up to \d+ MB; free some, or set RLHF_OUTPUTS"):
            trainer.train()


def test_ppo_goes_on_from_the_last_checkpoint_of_its_folder(stage, tmp_path, monkeypatch, capsys):
    settings = dataclasses.replace(SETTINGS, updates=4)
    whole = make(stage, settings)
    whole.train()
    step, steps, folder = type(whole).step, [], tmp_path / "ppo"

    def stopped_after_two(self):
        if len(steps) == 2:
            stop()
        steps.append(self.update)
        return step(self)

    monkeypatch.setattr(type(whole), "step", stopped_after_two)
    with pytest.raises(KeyboardInterrupt):
        make(stage, settings, checkpoints=folder).train()
    monkeypatch.setattr(type(whole), "step", step)
    again = make(stage, settings, checkpoints=folder)
    again.train()
    assert "PPO goes on after update 2 of 4" in capsys.readouterr().out
    assert again.curve.equals(whole.curve)
    assert all(torch.equal(*pair) for pair in zip(again.parameters, whole.parameters, strict=True))
    assert [path.name for path in folder.iterdir()] == ["update_00004"]


def test_ppo_with_another_reward_or_other_start_weights_starts_over_with_a_line(stage, tmp_path, capsys):
    make(stage, checkpoints=tmp_path).train()
    other = make(stage, checkpoints=tmp_path, reward_fn=lambda prompts, *_: [0.5] * len(prompts))
    other.train()
    assert "PPO starts over: " in (out := capsys.readouterr().out) and "(rewards: " in out
    policy = models.load_policy(stage[0], "sft_full")
    with torch.no_grad():
        policy.transformer.ln_f.bias += 1e-3
    path = outputs.save_checkpoint(stage[0], "sft_full_final", policy, stage[1])
    make(stage, checkpoints=tmp_path).train()
    assert "(start weights: " in capsys.readouterr().out and path.is_dir()


def child(kind: str, killed_after: int = -1) -> None:
    """In a process of its own: a training, its losses as CSV and its result as a checkpoint."""
    torch.set_num_threads(1)
    profile, tokenizer = small_stage(load_profile("smoke"))
    trainer = KINDS[kind](profile, tokenizer)
    trainer.add_callback(At(killed_after, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    trainer.train()
    measures = ("loss", "accuracy") if kind == "reward" else ("loss",)
    outputs.write_csv(profile, "losses.csv", logged(trainer, *measures))
    outputs.save_checkpoint(profile, "result", trainer.model, tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "reward"])
def test_killed_process_run_again_writes_the_same_files(small, kind):
    environment = os.environ | {"PYTHONPATH": f"{outputs.ROOT}:{Path(__file__).parent}"}
    first = outputs.root()

    def run(folder, *arguments):
        code = f"import test_resume; test_resume.child({', '.join(map(repr, (kind, *arguments)))})"
        options = {"env": environment | {"RLHF_OUTPUTS": str(folder)}, "capture_output": True, "text": True}
        return subprocess.run([sys.executable, "-c", code], **options)

    whole = first.with_name("whole")
    shutil.copytree(first, whole)
    assert run(whole).returncode == 0
    assert run(first, 3).returncode == -signal.SIGKILL
    last = run(first)
    assert last.returncode == 0 and "goes on after step 3 of" in last.stdout, last.stderr[-2000:]
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    for name in ("evaluation/smoke/losses.csv", f"checkpoints/smoke/result/{weights}"):
        assert (first / name).read_bytes() == (whole / name).read_bytes()
