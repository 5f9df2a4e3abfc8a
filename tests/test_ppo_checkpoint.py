"""Saving and resuming PPO: bit by bit as if it had not stopped, and nothing but the same run."""

import dataclasses
import json

from rlhf import models

import pytest
import torch
from ppo_stage import SETTINGS, make


@pytest.mark.parametrize("separate", [False, True])
def test_resumed_run_is_bit_identical(stage, tmp_path, separate):
    settings = dataclasses.replace(SETTINGS, updates=4, checkpoint_every=2, kl_target=0.01, kl_horizon=50)

    def new(folder):
        value_model = models.new_reward_model(stage[0], seed=0) if separate else None
        return make(stage, settings, checkpoints=folder, value_model=value_model)

    whole = new(tmp_path / "whole")
    whole.train()
    resumed = new(tmp_path / "resumed")
    resumed.resume(tmp_path / "whole" / "update_00002")
    assert resumed.update == 2
    resumed.train()
    assert resumed.curve.equals(whole.curve)
    for mine, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert not list((tmp_path / "whole").glob(".*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"batch_size": 4}, "batch_size: 8 there, 4 here"),
        ({"learning_rate": 2e-3}, "learning_rate: 0.001 there, 0.002 here"),
        ({"kl_coef": 0.5}, "kl_coef: 0.05 there, 0.5 here"),
    ],
)
def test_checkpoint_of_other_settings_is_refused_by_name_and_changes_nothing(stage, tmp_path, changes, message):
    path = make(stage, checkpoints=tmp_path).save()
    other = make(stage, dataclasses.replace(SETTINGS, **changes))
    before = [p.detach().clone() for p in other.parameters]
    with pytest.raises(ValueError, match=message):
        other.resume(path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters, strict=True))


def test_checkpoint_of_other_prompts_or_another_critic_is_refused(stage, tmp_path):
    trainer = make(stage, checkpoints=tmp_path)
    path = trainer.save()
    with pytest.raises(ValueError, match="number of prompts: 24 there, 23 here"):
        make((*stage[:2], stage[2][:-1])).resume(path)
    with pytest.raises(ValueError, match=r"\(prompts: "):
        make((*stage[:2], [*stage[2][:-1], "Another question?"])).resume(path)
    with pytest.raises(ValueError, match="value model: False there, True here"):
        make(stage, value_model=models.new_reward_model(stage[0], seed=0)).resume(path)


def test_longer_run_may_go_on_from_a_shorter_one(stage, tmp_path):
    path = make(stage, checkpoints=tmp_path).save()
    longer = make(stage, dataclasses.replace(SETTINGS, updates=9, micro_batch_size=8))
    longer.resume(path)
    assert longer.update == json.loads((path / "state.json").read_text())["update"] == 0


def test_folder_that_is_no_checkpoint_and_a_trainer_without_a_folder_are_refused(stage, tmp_path):
    trainer = make(stage)
    with pytest.raises(FileNotFoundError, match=r"no state\.json"):
        trainer.resume(tmp_path)
    with pytest.raises(ValueError, match="no folder for checkpoints"):
        trainer.save()
