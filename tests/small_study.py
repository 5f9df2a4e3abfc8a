"""A study of the smoke profile and a reward model for it, for the tests of rlhf.studies."""

import copy
import dataclasses

from rlhf import models, outputs
from rlhf.studies import common

import torch
from conftest import ppo_settings


def small_study(profile, split="test"):
    """The study of a run whose fine-tuned policy is the base; `profile` is that of the fixture profile_with_sft."""
    outputs.update_run(profile, ppo=dataclasses.asdict(ppo_settings(profile)))
    return common.Study(profile, split)


def small_proxy(study, monkeypatch):
    """A proxy, and all others of the test too, whose reward model is the SFT policy with an untrained head."""
    model = models.new_reward_model(study.profile, seed=3)
    model.score.weight.data = torch.randn(model.score.weight.shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(models, "load_reward_model", lambda profile, which="final": copy.deepcopy(model).eval())
    return common.Proxy(study, "final")
