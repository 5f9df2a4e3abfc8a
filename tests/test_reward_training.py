"""Training a reward model: its loss is that of the scores, and the adapter and the head alone learn."""

import dataclasses

from rlhf import models, outputs, runtime
from rlhf.data import load_preferences
from rlhf.reward import pairs as reward_pairs
from rlhf.reward import training as reward_training
from rlhf.reward.scoring import score_pairs

import numpy as np
import pytest
import torch
from conftest import recorded_rates


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    """float32, so that losses can be compared with those by hand."""
    monkeypatch.setattr(runtime, "bf16_is_native", lambda *_: False)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")  # the trainers set it; restored after each test


@pytest.fixture
def reward_trainer(profile_with_sft, monkeypatch):
    """A trainer on pairs that every word tells apart, which a few steps are enough to learn with random weights."""
    settings = dataclasses.replace(profile_with_sft.reward, learning_rate=2e-2, mismatched_first=0.0)
    profile = dataclasses.replace(profile_with_sft, max_steps=24, reward=settings)
    easy = {
        name: rows.map(lambda row: {"chosen": "yes " * 20, "rejected": "no " * 20})
        for name, rows in load_preferences(profile).items()
    }
    monkeypatch.setattr(reward_pairs, "load_preferences", lambda _: easy)
    tokenizer = models.load_tokenizer(profile)
    splits = reward_pairs.load_pairs(profile, tokenizer)
    validation = splits["validation"].select(range(settings.batch_size))
    model = models.new_reward_model(profile, seed=0)
    return (
        profile,
        tokenizer,
        validation,
        reward_training.make_trainer(
            profile, model, tokenizer, reward_pairs.training_pairs(profile, tokenizer, splits["train"]), validation
        ),
    )


def margins(model, tokenizer, rows):
    chosen, rejected = score_pairs(model, tokenizer, rows)
    return chosen - rejected


def test_reward_trainer_reads_the_same_scores_as_the_evaluation(reward_trainer):
    profile, tokenizer, validation, trainer = reward_trainer
    both = score_pairs(trainer.model, tokenizer, validation)
    margin = both[0] - both[1]
    measured = trainer.evaluate()
    assert profile.reward.center_rewards_coefficient > 0
    loss = (
        np.log1p(np.exp(-margin)).mean() + profile.reward.center_rewards_coefficient * ((both[0] + both[1]) ** 2).mean()
    )
    assert measured["eval_loss"] == pytest.approx(loss, abs=1e-5)
    assert measured["eval_accuracy"] == pytest.approx((margin > 0).mean())


def test_reward_training_lowers_the_loss_and_trains_adapter_and_head_alone(reward_trainer):
    profile, tokenizer, validation, trainer = reward_trainer
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trainable)
    assert all("lora_" in name or "score" in name for name in trainable)
    trainer.train()
    curve = reward_training.training_curve(trainer)
    assert list(curve.columns) == ["split", "step", "loss", "accuracy"]
    assert np.isfinite(curve.loss).all() and curve.accuracy.between(0, 1).all()
    train_loss = curve.query("split == 'train'").loss
    assert train_loss.tail(6).mean() < train_loss.head(6).mean() - 0.1  # a batch has eight pairs: one alone is noise
    assert (curve.split == "validation").sum() == profile.reward.evaluations
    assert list((outputs.logs_dir(profile) / "reward_model").rglob("events.out.tfevents.*"))
    outputs.save_checkpoint(profile, "reward_model_final", trainer.model, tokenizer)
    expected = margins(trainer.model, tokenizer, validation)
    assert margins(models.load_reward_model(profile), tokenizer, validation) == pytest.approx(expected, abs=1e-5)


def test_every_step_has_a_rate_above_zero_and_the_start_does_not_depend_on_what_ran_before(reward_trainer):
    profile, tokenizer, validation, trainer = reward_trainer
    start = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    rates = recorded_rates(trainer)
    assert rates[:3] == pytest.approx([2e-2 * share for share in (0.25, 0.5, 0.75)]) and 0 < rates[-1] < 1e-3
    torch.rand(5)
    again = reward_training.make_trainer(
        profile, models.new_reward_model(profile, seed=0), tokenizer, validation, validation
    )
    assert start and all(torch.equal(start[n], p) for n, p in again.model.named_parameters() if p.requires_grad)
