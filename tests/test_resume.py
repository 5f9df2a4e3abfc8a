"""A training that is interrupted goes on to the same numbers, from a checkpoint that is whole and its own."""

import dataclasses
import json
import shutil
from pathlib import Path

from rlhf import models, outputs, resume, runtime, sft
from rlhf.adapters import HEAD
from rlhf.reward import classifier
from rlhf.reward.training import make_trainer as make_reward_trainer
from rlhf.training import logged

import numpy as np
import pytest
import torch
from conftest import run_python
from datasets import Dataset
from ppo_stage import SETTINGS, make
from transformers import TrainerCallback

WORDS = "good bad film what one and again never ever cook roast tofu slices heat oven wait until done".split()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """A checkpoint with every logged loss, and float32."""
    monkeypatch.setenv("RLHF_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    monkeypatch.setattr(runtime, "bf16_is_native", lambda *_: False)


@pytest.fixture
def stage(profile_with_sft):
    """A profile with dropout and two batches for each step, and its tokenizer."""
    changes = {"batch_size": 2, "gradient_accumulation": 2, "warmup_steps": 3, "evaluations": 3}
    lora = dataclasses.replace(profile_with_sft.sft.lora, dropout=0.2)
    settings = {
        name: dataclasses.replace(getattr(profile_with_sft, name), lora=lora, **changes) for name in ("sft", "reward")
    }
    profile = dataclasses.replace(profile_with_sft, max_steps=None, **settings)
    return profile, models.load_tokenizer(profile)


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


class Interrupt(TrainerCallback):
    def __init__(self, after: int):
        self.after = after

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def interrupted(trainer, after: int):
    trainer.add_callback(Interrupt(after))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def result(trainer):
    """The weights, and the log but for seconds."""
    log = [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in
           trainer.state.log_history if "train_runtime" not in entry]  # fmt: skip
    return {name: weight.clone() for name, weight in resume.trained(trainer.model).items()}, log


def assert_same(first, second):
    assert first[1] == second[1] and first[0].keys() == second[0].keys()
    assert all(torch.equal(weight, second[0][name]) for name, weight in first[0].items())


KINDS = {"full": sft_trainer, "qlora": qlora_trainer, "reward": reward_trainer, "labels": label_trainer}


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_to_the_same_weights_and_log(stage, kind, capsys):
    new = KINDS[kind]
    whole = new(*stage)
    steps = whole.args.max_steps
    torch.rand(3)
    whole.train()
    expected = result(whole)
    outputs.forget_training(stage[0])
    places = (1, steps // 2, steps - 1)  # in the first pass over the data and, of fine-tuning, in a later one
    for after in places:
        interrupted(new(*stage), after)
    assert resume.newest(Path(whole.args.output_dir)).name == f"step_{steps - 1:06d}"
    torch.rand(5)
    last = new(*stage)
    last.train()
    assert_same(expected, result(last))
    said = capsys.readouterr().out
    assert [f"goes on after step {after} of {steps}" in said for after in places] == [True] * 3
    assert expected[1] and any("eval_loss" in entry for entry in expected[1]) != (kind == "labels")


def test_interruption_between_two_passes_over_the_data(stage):
    whole = sft_trainer(*stage)
    whole.train()
    expected = result(whole)
    outputs.forget_training(stage[0])
    batches = -(-17 // 2)
    interrupted(sft_trainer(*stage), -(-batches // 2))
    last = sft_trainer(*stage)
    last.train()
    assert_same(expected, result(last))


def test_checkpoints_change_no_number_and_draw_nothing(stage, monkeypatch):
    results, states = [], []
    for seconds in ("0", "1e9"):
        outputs.forget_training(stage[0])
        monkeypatch.setenv("RLHF_CHECKPOINT_SECONDS", seconds)
        runtime.seed_everything(4)
        trainer = sft_trainer(*stage)
        trainer.train()
        results.append(result(trainer))
        states.append(runtime.generator_states())
    assert_same(*results)
    assert states[0] == states[1]


def test_ended_training_is_not_repeated_by_another_process_and_is_by_this_one(stage, capsys, monkeypatch):
    first = sft_trainer(*stage)
    first.train()
    expected, started = result(first), []
    monkeypatch.setattr(sft._SFTTrainer, "_run_epoch", lambda *_, **__: started.append(1))
    monkeypatch.setattr(resume.os, "getpid", lambda: 1)
    other = sft_trainer(*stage)
    other.train()
    assert not started
    assert_same(expected, result(other))
    assert other.model.training == first.model.training
    assert "sft_test goes on after step" in capsys.readouterr().out
