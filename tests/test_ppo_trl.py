"""TRL's PPO: one update of the project's own equals one of TRL's, in TRL's conventions; the learning rate; the log."""

import copy
import dataclasses
from types import SimpleNamespace

from rlhf import data, models, outputs
from rlhf.ppo import algorithm
from rlhf.ppo import trl as trl_stage
from rlhf.ppo.trainer import PPOTrainer, Rollout
from rlhf.profiles import PROFILES, load_profile
from rlhf.template import format_prompt

import numpy as np
import pytest
import torch
from conftest import ppo_settings
from datasets import Dataset
from ppo_stage import make
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trl.experimental.ppo import ppo_trainer as trl_ppo


def tokenized(prompts, tokenizer):
    return Dataset.from_dict({"input_ids": tokenizer([format_prompt(prompt) for prompt in prompts])["input_ids"]})


class ScoresAfterEos(PPOTrainer):
    """TRL's convention: the score stands one token after EOS, where there is one, and that state has a value."""

    def value_mask(self, rollout):
        longer = torch.cat([torch.ones_like(rollout.mask[:, :1]), rollout.mask[:, :-1]], dim=1)
        return rollout.mask | longer

    def _states(self, model, rollout, rows):
        """With the state of the last token, which the base class does not read."""
        sequences, attention = rollout.sequences[rows], rollout.attention[rows]
        positions = (attention.cumsum(dim=1) - 1).clamp(min=0)
        trunk = getattr(model, model.base_model_prefix)
        states = trunk(input_ids=sequences, attention_mask=attention, position_ids=positions).last_hidden_state
        return states[:, -rollout.responses.shape[1] - 1 : -1]


def test_one_update_equals_that_of_trl(stage, monkeypatch):
    """The same rollout and settings, in TRL's conventions: score after EOS, separate value model, no gradient clipping.

    TRL runs here and its numbers are read off while it does: nothing of it stands in a file.
    """
    profile, tokenizer, prompts = stage
    settings = dataclasses.replace(
        ppo_settings(profile, "trl"), updates=1, micro_batch_size=8, mini_batches=1, epochs=2, warmup_updates=0,
        cliprange_value=0.05, lam=0.9, gamma=0.97, learning_rate=1e-3, missing_eos_penalty=0.7,
        max_grad_norm=float("inf"), value_learning_rate=None, adam_epsilon=1e-5,
    )  # fmt: skip
    four = [models.load_policy(profile, "sft_full"), models.load_policy(profile, "sft_full")]
    four += [models.new_reward_model(profile, seed=seed) for seed in (0, 1)]
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # a reference of its own, so that there is a KL; a value that is not 0
        for parameter in four[1].parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    seen = {"whitened": [], "sequences": [], "scores": []}
    whiten, get_reward = trl_ppo.masked_whiten, trl_ppo.get_reward

    def record_whitening(values, mask, *args, **kwargs):
        seen["whitened"].append((values.clone(), mask.clone(), whiten(values, mask, *args, **kwargs)))
        return seen["whitened"][-1][-1].clone()

    def record_reward(model, sequences, pad, context):
        result = get_reward(model, sequences, pad, context)
        if model is four[2]:
            seen["scores"].append(result[1].clone())
            seen["sequences"].append((sequences.clone(), context))
        return result

    monkeypatch.setattr(trl_ppo, "masked_whiten", record_whitening)
    monkeypatch.setattr(trl_ppo, "get_reward", record_reward)
    start = [{name: p.clone() for name, p in four[i].state_dict().items()} for i in (0, 1, 3)]
    theirs = trl_stage.make_trainer(profile, settings, *four, tokenizer, tokenized(prompts, tokenizer))
    theirs.train()
    entry = next(e for e in theirs.state.log_history if "objective/kl" in e)

    settings = dataclasses.replace(settings, micro_batch_size=3)
    policy, ref = models.load_policy(profile, "sft_full"), models.load_policy(profile, "sft_full")
    value_model = models.new_reward_model(profile, seed=1)
    for model, state in zip((policy, ref, value_model), start, strict=True):
        model.load_state_dict(state)
    given = {}
    mine = ScoresAfterEos(
        policy, ref, lambda *_: given["scores"], tokenizer, prompts, settings, value_model=value_model
    )
    sequences, context = seen["sequences"][0]
    responses = sequences[:, context:]
    mask = algorithm.response_mask(responses, tokenizer.eos_token_id)
    attention = torch.cat([(sequences[:, :context] != tokenizer.pad_token_id).long(), mask], dim=1)
    ended = (responses == tokenizer.eos_token_id).any(dim=1)
    rollout = Rollout(sequences, attention, responses, mask, ended, torch.zeros(mask.shape))
    reward_model = models.new_reward_model(profile, seed=0)
    with torch.no_grad():
        given["scores"] = [
            reward_model(input_ids=s[a.bool()][None]).logits.item() for s, a in zip(sequences, attention, strict=True)
        ]
    assert given["scores"] == pytest.approx(seen["scores"][0].tolist(), abs=1e-4)

    monkeypatch.setattr(mine, "generate", lambda *_, **__: rollout)
    recorded = {}
    optimise = mine.optimise

    def record_optimise(rollout, logprobs, values, advantages, returns):
        recorded.update(values=values, advantages=advantages, returns=returns)
        return optimise(rollout, logprobs, values, advantages, returns)

    monkeypatch.setattr(mine, "optimise", record_optimise)
    row = mine.step()
    raw, theirs_mask, whitened = seen["whitened"][0]
    assert torch.equal(theirs_mask.long(), mask)
    assert recorded["advantages"].numpy() == pytest.approx((whitened * mask).numpy(), abs=1e-4)
    value_mask = mine.value_mask(rollout)
    assert (recorded["returns"] - recorded["values"]).numpy() == pytest.approx((raw * value_mask).numpy(), abs=1e-4)
    for name, key in {
        "reward": "objective/scores",
        "kl": "objective/kl",
        "reward_minus_kl": "objective/rlhf_reward",
        "policy_loss": "loss/policy_avg",
        "value_loss": "loss/value_avg",
        "clip_fraction": "policy/clipfrac_avg",
    }.items():
        assert row[name] == pytest.approx(entry[key], abs=1e-4), name
    assert row["kl"] != pytest.approx(0, abs=1e-3)
    for model, other in ((policy, four[0]), (value_model, four[3])):
        for name, parameter in other.state_dict().items():
            assert torch.allclose(model.state_dict()[name], parameter, atol=1e-4), name


def test_every_update_learns_the_warm_up_is_the_same_as_ours_and_every_update_is_logged(stage):
    """TRL's own schedule gives the first update a learning rate of 0."""
    profile, tokenizer, prompts = stage
    settings = dataclasses.replace(ppo_settings(profile, "trl"), updates=3, warmup_updates=1, max_new_tokens=6)
    four = [models.load_policy(profile, "sft_full") for _ in range(2)]
    four += [models.new_reward_model(profile, seed=seed) for seed in (0, 1)]
    before = [p.detach().clone() for p in four[0].parameters()]
    trainer = trl_stage.make_trainer(profile, settings, *four, tokenizer, tokenized(prompts, tokenizer))
    rates, step = [], trainer.optimizer.step

    def recorded(*args, **kwargs):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*args, **kwargs)

    trainer.optimizer.step = recorded
    generators = torch.get_rng_state()
    trainer.train()
    assert torch.equal(torch.get_rng_state(), generators)
    per_update = rates[:: settings.epochs * settings.mini_batches]
    assert per_update == pytest.approx([settings.learning_rate * share for share in (0.5, 1.0, 1.0)])
    assert any(not torch.equal(a, b) for a, b in zip(before, four[0].parameters(), strict=True))
    ours = make(stage, settings)
    shares = []
    for ours.update in range(3):
        shares.append(ours.lr_scale)
    assert shares == [0.5, 1.0, 1.0]
    curve = trl_stage.training_curve(trainer)
    assert curve.episode.tolist() == [settings.batch_size * i for i in (1, 2, 3)]
    events = EventAccumulator(str(outputs.logs_dir(profile) / "ppo_trl")).Reload()
    assert len(events.Scalars("train/objective/kl")) == 3


def test_trl_says_that_it_starts_over_where_another_process_was_stopped_in_it(stage, monkeypatch, capsys):
    profile, tokenizer, prompts = stage
    four = [models.load_policy(profile, "sft_full") for _ in range(2)]
    four += [models.new_reward_model(profile, seed=seed) for seed in (0, 1)]
    rows = tokenized(prompts, tokenizer)
    trainer = trl_stage.make_trainer(profile, ppo_settings(profile, "trl"), *four, tokenizer, rows)
    monkeypatch.setattr(trl_stage.PPOTrainer, "train", lambda _: None)
    for pid in (11, 11, 12):
        monkeypatch.setattr(trl_stage.os, "getpid", lambda pid=pid: pid)
        trainer.train()
    assert capsys.readouterr().out == "ppo_trl starts over: TRL's PPO can't go on from a checkpoint.\n"


def test_every_profile_has_ppo_settings_and_max_steps_cuts_them_short(profile):
    for name in PROFILES:
        settings = ppo_settings(dataclasses.replace(load_profile(name), max_steps=None))
        assert settings.batch_size % settings.mini_batches == 0
        assert settings.batch_size % settings.micro_batch_size == 0
        # Where TRL 1.12 accumulates gradients, more than one mini-batch means half of the optimiser steps.
        assert settings.mini_batches == 1 or settings.micro_batch_size == settings.batch_size
        assert ppo_settings(dataclasses.replace(load_profile(name), max_steps=1)).updates == 1
        longer = dataclasses.replace(load_profile(name), max_steps=10**6)
        assert ppo_settings(longer) == settings


def test_rollouts_are_recorded_as_counted_by_hand_and_generate_is_given_back(tokenizer, monkeypatch, tmp_path):
    eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = torch.tensor([[9, 9, 5, 6, eos, pad], [9, 9, 5, eos, pad, pad], [9, 9, 5, 6, 7, 8]])

    class Policy:
        def generate(self, input_ids, **options):
            return SimpleNamespace(sequences=sequences, options=options)

    trainer = object.__new__(trl_stage.RecordingPPOTrainer)
    trainer.policy_model, trainer.processing_class, trainer.model = Policy(), tokenizer, torch.nn.Linear(1, 1)
    trainer.args = SimpleNamespace(seed=0, output_dir=str(tmp_path / "ppo"), process_index=0)
    seen = []

    def train(self):
        seen.append(self.policy_model.generate(input_ids=sequences[:, :2], max_new_tokens=4))

    monkeypatch.setattr(trl_stage.PPOTrainer, "train", train)
    trainer.train()
    assert torch.equal(seen[0].sequences, sequences) and seen[0].options.pop("logits_processor")
    assert seen[0].options == {"max_new_tokens": 4}
    expected = {"response_length": pytest.approx((3 + 2 + 4) / 3), "stop_rate": pytest.approx(2 / 3)}
    expected |= {"distinct_2": pytest.approx(5 / 6), "repetition": 0.0}  # of six pairs, 5 6 stands twice
    assert trainer.rollouts == [expected]
    trainer.policy_model.generate(input_ids=sequences[:, :2])
    assert len(trainer.rollouts) == 1


@pytest.fixture
def ppo(profile_with_sft):
    profile = dataclasses.replace(profile_with_sft, max_steps=2)
    tokenizer = models.load_tokenizer(profile)
    policy, reference = models.load_policy(profile, "sft_full"), models.load_policy(profile, "sft_full")
    reward_model, value_model = (models.new_reward_model(profile, seed=0) for _ in range(2))
    prompts = tokenized(data.training_prompts(profile, tokenizer, 256), tokenizer)
    return profile, [policy, reference, reward_model, value_model], tokenizer, prompts


def test_fewer_prompts_than_a_batch_are_refused(ppo):
    profile, four, tokenizer, prompts = ppo
    size = ppo_settings(profile, "trl").batch_size
    with pytest.raises(ValueError, match=f"{size - 1} prompts are fewer than a batch of {size}"):
        trl_stage.make_trainer(profile, ppo_settings(profile, "trl"), *four, tokenizer, prompts.select(range(size - 1)))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3)])
def test_models_that_are_one_object_are_refused(ppo, first, second):
    profile, four, tokenizer, prompts = ppo
    four[second] = four[first]
    with pytest.raises(ValueError, match="four separate models"):
        trl_stage.make_trainer(profile, ppo_settings(profile, "trl"), *four, tokenizer, prompts)


@pytest.mark.parametrize(("index", "name"), [(0, "policy"), (3, "value model")])
def test_a_frozen_model_that_should_learn_is_refused(ppo, index, name):
    profile, four, tokenizer, prompts = ppo
    four[index].requires_grad_(False)
    with pytest.raises(ValueError, match=f"weights of the {name} are frozen.*requires_grad_"):
        trl_stage.make_trainer(profile, ppo_settings(profile, "trl"), *four, tokenizer, prompts)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_two_updates_of_ppo_give_a_finite_curve_and_train_policy_and_value_alone(ppo):
    profile, four, tokenizer, prompts = ppo
    before = [weights(copy.deepcopy(model)) for model in four]
    trainer = trl_stage.make_trainer(profile, ppo_settings(profile, "trl"), *four, tokenizer, prompts)
    trainer.train()
    curve = trl_stage.training_curve(trainer)
    settings = ppo_settings(profile, "trl")
    assert curve.episode.tolist() == [settings.batch_size, 2 * settings.batch_size]
    for column in ("reward", "kl", "entropy", "value_loss", "clip_fraction", "response_length", "stop_rate"):
        assert np.isfinite(curve[column]).all(), column
    assert curve.kl[0] == pytest.approx(0, abs=1e-3)  # the policy starts as the reference
    assert curve.response_length.between(1, profile.decoding.max_new_tokens).all()
    assert curve.stop_rate.between(0, 1).all()
    assert 0 < curve.entropy[0] < np.log(len(tokenizer)) + 0.5
    changed = [not torch.equal(old, weights(model)) for old, model in zip(before, four, strict=True)]
    assert changed == [True, False, False, True]
    assert list((outputs.logs_dir(profile) / "ppo_trl").rglob("events.out.tfevents.*"))
    assert "generate" not in vars(four[0])


def test_curve_has_one_row_for_an_update_whose_answers_did_not_fit_into_one_batch(ppo):
    profile, four, tokenizer, prompts = ppo
    smoke = dataclasses.replace(ppo_settings(profile, "trl"), micro_batch_size=4, mini_batches=1, epochs=1)
    trainer = trl_stage.make_trainer(profile, smoke, *four, tokenizer, prompts)
    trainer.train()
    curve = trl_stage.training_curve(trainer)
    halves = [rollout["response_length"] for rollout in trainer.rollouts]
    assert smoke.batch_size == 8 and len(halves) == 4
    assert curve.episode.tolist() == [8, 16]
    assert curve.response_length.tolist() == pytest.approx([np.mean(halves[:2]), np.mean(halves[2:])])
