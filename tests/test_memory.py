"""A batch that does not fit on the GPU: PPO goes on with smaller parts of it, the other trainers say what to set."""

import dataclasses

from rlhf import models, sft
from rlhf.ppo import trl
from rlhf.training import logged

import pytest
import torch
from ppo_stage import SETTINGS, make
from test_finite import examples, trl_trainer


def small_memory(trainer, most, when=lambda: True):
    """The trainer on a GPU that holds `most` answers in a pass; `when` says whether it is full at all."""
    whole = trainer.forward

    def forward(rollout, rows):
        if len(rows) > most and when():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(rollout, rows)

    trainer.forward = forward
    return trainer


def weights_after(trainer):
    trainer.step()
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


def test_ppo_goes_on_with_half_the_micro_batch_to_the_same_weights_and_says_it_once(stage, capsys):
    settings = dataclasses.replace(SETTINGS, micro_batch_size=4, warmup_updates=0)
    trainer = small_memory(make(stage, settings), most=2)
    smaller = make(stage, dataclasses.replace(settings, micro_batch_size=2))
    assert torch.equal(weights_after(trainer), weights_after(smaller))
    assert trainer.settings == smaller.settings
    said = "Out of memory: micro_batch_size is now 2, not 4; the steps are the same."
    assert capsys.readouterr().out.count(said) == 1


def test_gradient_of_a_step_that_was_broken_off_does_not_count_twice(stage):
    settings = dataclasses.replace(SETTINGS, batch_size=16, micro_batch_size=4, warmup_updates=0)
    calls = []

    def second_pass_with_gradient():
        calls.append(torch.is_grad_enabled())
        return sum(calls) == 2

    trainer = small_memory(make(stage, settings), 2, second_pass_with_gradient)
    assert torch.allclose(weights_after(trainer), weights_after(make(stage, settings)), atol=2e-5)
    assert trainer.settings.micro_batch_size == 2


def test_ppo_for_which_one_answer_is_too_many_says_what_to_lower(stage):
    with pytest.raises(
        torch.OutOfMemoryError, match=r"update 1: .*one answer at a time; lower batch_size or max_new_t"
    ):
        small_memory(make(stage), most=0).train()


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("size", "advice"), [(4, "batch_size = 2 and gradient_accumulation = 2, which"), (1, "a smaller max_length")]
)
def test_fine_tuning_says_which_setting_to_halve_and_which_to_double(profile_with_base, monkeypatch, size, advice):
    tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
    changed = dataclasses.replace(profile_with_base.sft, batch_size=size, gradient_accumulation=1)
    profile = dataclasses.replace(profile_with_base, sft=changed)
    train = examples(profile, tokenizer)
    trainer = sft.make_trainer(profile, "sft_full", model, tokenizer, train, None, learning_rate=1e-3)
    monkeypatch.setattr(trainer, "compute_loss", out_of_memory)
    with pytest.raises(
        torch.OutOfMemoryError, match=f"sft_full, step 1: a batch of {size} does not fit .*set {advice}"
    ):
        trainer.train()


def test_half_the_batch_with_twice_the_accumulation_takes_the_same_steps(profile_with_base):
    losses = []
    for size, steps in ((4, 1), (2, 2)):
        tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
        changed = dataclasses.replace(profile_with_base.sft, batch_size=size, gradient_accumulation=steps)
        profile = dataclasses.replace(profile_with_base, sft=changed, max_steps=2)
        train = examples(profile, tokenizer)
        trainer = sft.make_trainer(profile, "sft_full", model, tokenizer, train, None, learning_rate=1e-3)
        trainer.train()
        losses.append(logged(trainer, "loss").loss.to_numpy())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][0] != pytest.approx(losses[0][1], rel=1e-3)


def test_ppo_by_trl_says_which_settings_to_change(stage, monkeypatch):
    trainer = trl_trainer(stage)
    monkeypatch.setattr(trl.PPOTrainer, "train", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError, match=r"8 answers do not fit .*micro_batch_size=4, and mini_batches=1"):
        trainer.train()
