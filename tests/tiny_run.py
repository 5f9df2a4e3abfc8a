"""A finished run without its training: small untrained models, all different, and the tables of the lab's run."""

import dataclasses
import shutil
from pathlib import Path

from rlhf import models, outputs
from rlhf.collect.items import Candidate, Item
from rlhf.collect.pairs import collect
from rlhf.collect.raters import LabRater
from rlhf.data import load_preferences
from rlhf.profiles import load_profile
from rlhf.training import lora_config

import pytest
import torch
from conftest import SETTINGS
from peft import get_peft_model


def make_run(folder: Path, base_checkpoint: Path) -> Path:
    """Write it to the outputs folder `folder`, as of the smoke profile."""
    with pytest.MonkeyPatch.context() as patch:
        for name in SETTINGS:
            patch.delenv(name, raising=False)
        patch.setenv("RLHF_OUTPUTS", str(folder))
        profile = load_profile("smoke")
        shutil.copytree(outputs.evaluation_dir(load_profile("lab"), outputs.REFERENCE), outputs.evaluation_dir(profile))
        settings = dataclasses.asdict(profile)
        outputs.update_run(profile, settings=settings, seed=profile.seed, ppo_aligned_final="ppo_trl_final")
        shutil.copytree(base_checkpoint, outputs.checkpoint_path(profile, "base"))
        tokenizer = models.load_tokenizer(profile)
        torch.manual_seed(0)
        for name in ("sft_full_final", "ppo_trl_final", "ppo_scratch_final"):
            outputs.save_checkpoint(profile, name, changed(models.load_base(profile)), tokenizer)
        copied, aligned = (outputs.checkpoint_path(profile, name) for name in ("ppo_trl_final", "ppo_aligned_final"))
        shutil.copytree(copied, aligned)
        base = models.load_base(profile)
        adapter = get_peft_model(base, lora_config(profile.sft.lora, "CAUSAL_LM", base))
        outputs.save_checkpoint(profile, "sft_qlora_final", changed(adapter), tokenizer)
        trunk = models.new_reward_model(profile, seed=0)
        reward_model = changed(
            get_peft_model(trunk, lora_config(profile.reward.lora, "SEQ_CLS", trunk, modules_to_save=["score"]))
        )
        outputs.save_checkpoint(profile, "reward_model_final", reward_model, tokenizer)
        both = load_preferences(profile)["train"]
        items = [
            Item(row["prompt"], tuple(Candidate(row[side], True, {}) for side in ("chosen", "rejected")), "corpus")
            for row in both
        ]
        collect(outputs.collect_dir(profile) / "notebook", items, [LabRater(0), LabRater(1)])
    return folder


@torch.no_grad()
def changed(model: torch.nn.Module) -> torch.nn.Module:
    """The model with random numbers added to all that it would train."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    return model
