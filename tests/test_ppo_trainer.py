"""The project's PPO trainer: its log-probabilities and gradients, its numbers, a task that every PPO must solve."""

import copy
import dataclasses

from rlhf import models, runtime
from rlhf.generation import answer_logprobs, generate_answers
from rlhf.ppo import actors, algorithm
from rlhf.ppo.trainer import PPOTrainer
from rlhf.reward import scoring

import numpy as np
import pytest
import torch
from ppo_stage import SETTINGS, make, words
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_logprobs_of_a_rollout_are_those_of_each_answer_alone(stage):
    _, tokenizer, prompts = stage
    trainer = make(stage)
    rollout = trainer.generate(range(8), "test")
    logprobs, values = trainer.compute_logprobs_and_values(rollout)
    assert rollout.sampler_logprobs.numpy() == pytest.approx(logprobs.numpy(), abs=1e-4)
    answers = generate_answers(trainer.policy, tokenizer, prompts[:8], max_new_tokens=12, batch_size=1, temperature=0.8)
    given = [
        a._replace(token_ids=tuple(row[keep.bool()].tolist()))
        for a, row, keep in zip(answers, rollout.responses, rollout.mask, strict=True)
    ]
    alone = answer_logprobs(trainer.policy, tokenizer, prompts[:8], given, batch_size=1, temperature=0.8)
    assert logprobs.sum(dim=1).numpy() == pytest.approx(alone, abs=1e-4)
    assert (logprobs[rollout.mask == 0] == 0).all() and (values == 0).all()
    assert trainer.compute_ref_logprobs(rollout).numpy() == pytest.approx(logprobs.numpy(), abs=1e-6)


def test_value_head_learns_at_its_own_rate_and_both_warm_up(stage):
    trainer = make(stage, dataclasses.replace(SETTINGS, value_learning_rate=0.3, warmup_updates=1))
    for warmth in (0.5, 1.0):
        trainer.step()
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3 * warmth, 0.3 * warmth])
    assert {id(p) for p in trainer.optimizer.param_groups[1]["params"]} == set(map(id, trainer.value_head.parameters()))


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(stage, monkeypatch):
    trainer = make(stage)
    before = [p.detach().clone() for p in trainer.parameters]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match="update 1: grad_norm not finite"):
        trainer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.parameters, strict=True))


def test_gradient_does_not_depend_on_the_micro_batch(stage):
    weights = []
    for size in (1, 3, 8):
        trainer = make(stage, dataclasses.replace(SETTINGS, micro_batch_size=size, warmup_updates=0))
        trainer.step()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters]))
    assert torch.allclose(weights[0], weights[1], atol=2e-5) and torch.allclose(weights[0], weights[2], atol=2e-5)
    before = torch.cat([p.detach().flatten() for p in models.load_policy(stage[0], "sft_full").parameters()])
    assert not torch.allclose(weights[0][: len(before)], before, atol=2e-4)


def test_training_leaves_the_reference_as_it_was_and_writes_one_row_per_update(stage, tmp_path):
    trainer = make(stage, logs=tmp_path)
    before = {name: p.clone() for name, p in trainer.ref.state_dict().items()}
    curve = trainer.train()
    assert all(torch.equal(before[name], p) for name, p in trainer.ref.state_dict().items())
    assert curve["update"].tolist() == [1, 2] and curve.episode.tolist() == [8, 16]
    assert curve.drop(columns="explained_variance").notna().all(axis=None)
    assert curve.kl[0] == pytest.approx(0, abs=1e-5) and curve.kl[1] != 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_same_seed_gives_the_same_curve_and_another_seed_another(stage):
    curves = [make(stage, dataclasses.replace(SETTINGS, seed=seed)).train() for seed in (1, 1, 2)]
    assert curves[0].equals(curves[1]) and not curves[0].equals(curves[2])


@pytest.mark.parametrize(
    ("reward_fn", "message"),
    [
        (lambda prompts, responses, ended: [0.0] * (len(responses) - 1), r"shape \(7,\) for 8 responses"),
        (lambda prompts, responses, ended: [[0.0]] * len(responses), r"shape \(8, 1\)"),
        (lambda prompts, responses, ended: [0.0] * 7 + [float("nan")], "returned nan for the response"),
    ],
)
def test_reward_of_a_wrong_shape_or_not_a_number_is_refused(stage, reward_fn, message):
    with pytest.raises(ValueError, match=message):
        make(stage, reward_fn=reward_fn).step()


def test_settings_that_do_not_fit_are_refused(stage):
    profile, tokenizer, prompts = stage
    with pytest.raises(ValueError, match="5 prompts are fewer than a batch of 8"):
        make((profile, tokenizer, prompts[:5]))
    with pytest.raises(ValueError, match="3 equal mini-batches"):
        make(stage, dataclasses.replace(SETTINGS, mini_batches=3))
    with pytest.raises(ValueError, match="doesn't fit into the context"):
        make(stage, dataclasses.replace(SETTINGS, max_new_tokens=250))
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="pad token that is not EOS"):
        make(stage)


def test_run_that_is_not_finite_stops_with_the_update_and_the_last_checkpoint(stage, tmp_path):
    trainer = make(stage, dataclasses.replace(SETTINGS, checkpoint_every=1), checkpoints=tmp_path)
    trainer.step()
    path = trainer.save()
    with torch.no_grad():
        trainer.value_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=rf"update 2: .*value_loss.* not finite .*{path.name}"):
        trainer.train()


def test_kl_above_its_ceiling_stops_the_run_and_says_so(stage, capsys):
    settings = dataclasses.replace(SETTINGS, updates=8, kl_ceiling=-1.0, kl_patience=2)
    trainer = make(stage, settings)
    trainer.train()
    assert trainer.update == 2
    assert "Stopped after 2 of 8 updates: the KL has been above -1 nats for 2 updates" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_learns_a_task_that_every_ppo_must_solve(stage, seed):
    """The share of words that begin with "s", from about one in ten to nearly all within 30 updates."""

    def share(_, responses, ended):
        return [float(np.mean([word.startswith("s") for word in text.split() or [""]])) for text in responses]

    settings = dataclasses.replace(
        SETTINGS, updates=30, batch_size=24, micro_batch_size=24, kl_coef=0.0, learning_rate=8e-3, lam=1.0,
        temperature=1.0, seed=seed, max_new_tokens=8,
    )  # fmt: skip
    curve = make(stage, settings, reward_fn=share).train()
    assert curve.reward.head(3).mean() < 0.2
    assert curve.reward.tail(3).mean() > 0.9


def test_answer_that_did_not_end_pays(stage):
    trainer = make(stage, dataclasses.replace(SETTINGS, missing_eos_penalty=2.0))
    rollout = trainer.generate(range(8), "test")._replace(ended=torch.tensor([True, False] * 4))
    plain = make(stage).score(stage[2][:8], rollout).tolist()
    got = trainer.score(stage[2][:8], rollout).tolist()
    assert got == [score - 2 * (i % 2) for i, score in enumerate(plain)]


def test_reward_function_is_told_which_answers_ended_and_scores_as_the_evaluation_does(stage):
    profile, tokenizer, prompts = stage
    model = models.new_reward_model(profile, seed=0)
    told = {}

    def reward(p, r, ended):
        told.update(prompts=p, responses=r, ended=ended)
        return scoring.score(model, tokenizer, p, r, ended)

    trainer = make(stage, dataclasses.replace(SETTINGS, max_new_tokens=3), reward_fn=reward)
    rollout = trainer.generate(range(8), "test")
    got = trainer.score(prompts[:8], rollout)
    assert told["ended"] == rollout.ended.tolist() and not all(told["ended"])
    rows = [
        s[a.bool()] for s, a in zip(rollout.sequences, rollout.attention, strict=True)
    ]  # the tokens as the policy wrote them: EOS only where it did
    with torch.no_grad():
        alone = [model(input_ids=row[None]).logits.item() for row in rows]
    assert got.numpy() == pytest.approx(scoring.score(model, tokenizer, prompts[:8], told["responses"], told["ended"]))
    texts_are_exact = [
        scoring.encode(tokenizer, [p], [r], [e])[0] == row.tolist()
        for p, r, e, row in zip(prompts, told["responses"], told["ended"], rows, strict=False)
    ]
    assert any(texts_are_exact)
    for exact, a, b in zip(texts_are_exact, got.tolist(), alone, strict=True):
        assert not exact or a == pytest.approx(b, abs=1e-4)


def test_every_prompt_comes_once_before_any_comes_again(stage):
    trainer = make(stage)  # 24 prompts; batches of 8, then of 7: the passes end within a batch
    trainer.settings = dataclasses.replace(SETTINGS, batch_size=7)
    drawn = [trainer._next_prompts() for _ in range(24)]
    assert all(len(set(batch)) == 7 for batch in drawn)
    flat = [i for batch in drawn for i in batch]
    for start in range(0, len(flat), 24):
        assert sorted(flat[start : start + 24]) == list(range(24))
    assert flat[:24] != flat[24:48]


GROUPED = dataclasses.replace(SETTINGS, answers_per_prompt=4, lam=1.0, kl_coef=0.5)


def test_answers_to_a_prompt_stand_side_by_side_and_differ(stage):
    trainer = make(stage, GROUPED)
    batches = [trainer._next_prompts() for _ in range(12)]  # 24 prompts, two to a batch
    assert all(batch == [batch[0]] * 4 + [batch[4]] * 4 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == sorted([*range(24)] * 4)
    rollout = trainer.generate(batches[0], "test")
    assert len({tuple(row) for row in rollout.responses[:4].tolist()}) == 4


def test_without_a_value_function_the_others_to_the_prompt_are_the_baseline(stage):
    trainer = make(stage, dataclasses.replace(GROUPED, whiten_advantages=False))
    with torch.no_grad():  # so that there is a KL
        trainer.policy.lm_head.weight.mul_(1.1)
    rollout, logprobs, values, advantages, returns, row = trainer.experience(trainer._next_prompts(), "test")
    scores = trainer.score([trainer.prompts[i] for i in trainer.order[:2] for _ in range(4)], rollout)
    penalties = 0.5 * (logprobs - trainer.compute_ref_logprobs(rollout))
    assert penalties.abs().sum() > 0.1
    totals = (scores - penalties.sum(dim=1)).tolist()
    for i, length in enumerate(rollout.mask.sum(dim=1).tolist()):
        others = [totals[j] for j in range(4 * (i // 4), 4 * (i // 4) + 4) if j != i]
        for t in range(length):
            to_come = scores[i].item() - penalties[i, t:].sum().item()
            assert returns[i, t].item() == pytest.approx(to_come, abs=1e-4)
            assert advantages[i, t].item() == pytest.approx(to_come - sum(others) / 3, abs=1e-4)
    assert (advantages[rollout.mask == 0] == 0).all()
    variance = (
        torch.var(returns[rollout.mask.bool()] - values[rollout.mask.bool()]) / returns[rollout.mask.bool()].var()
    )
    assert row["explained_variance"] == pytest.approx(1 - variance.item())


def test_without_a_value_function_none_is_learnt_and_the_policy_is(stage):
    trainer = make(stage, GROUPED)
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    row = trainer.step()
    assert not any(p.any() for p in trainer.value_head.parameters()) and row["value_loss"] > 0
    assert not all(torch.equal(old, new) for old, new in zip(before, trainer.policy.parameters(), strict=True))


@pytest.mark.parametrize("name", algorithm.GROUP_ADVANTAGES)
def test_the_advantage_of_the_settings_is_what_is_learned_from(stage, name):
    trainer = make(stage, dataclasses.replace(GROUPED, whiten_advantages=False, advantage=name))
    with torch.no_grad():  # so that there is a KL
        trainer.policy.lm_head.weight.mul_(1.1)
    rollout, logprobs, _, advantages, _, _ = trainer.experience(trainer._next_prompts(), "test")
    scores = trainer.score([trainer.prompts[i] for i in trainer.order[:2] for _ in range(4)], rollout)
    totals = scores - 0.5 * (logprobs - trainer.compute_ref_logprobs(rollout)).sum(dim=1)
    assert torch.allclose(advantages, algorithm.GROUP_ADVANTAGES[name](totals, 4, rollout.mask), atol=1e-4)
    assert (totals - scores).abs().min() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"advantage": "grop"}, "advantage 'grop' is none of gae, rloo, grpo, dr_grpo"),
        ({"advantage": "grpo", "answers_per_prompt": 1}, "grpo compares answers: give answers_per_prompt of 2 or more"),
        ({"answers_per_prompt": 3}, "8 is no multiple of 3 answers per prompt"),
        ({"lam": 0.9}, "give no value model, and lam 1"),
        ({"batch_size": 104}, "24 prompts are fewer than a batch of 26"),
    ],
)
def test_several_answers_per_prompt_must_fit(stage, changes, message):
    with pytest.raises(ValueError, match=message):
        make(stage, dataclasses.replace(GROUPED, **changes))


def test_head_and_log_softmax_are_float32_under_autocast(stage, monkeypatch):
    """GPT-2's logits lie near -100, where bfloat16 rounds to halves: simulated on a CPU."""
    profile, tokenizer, prompts = stage
    policy = models.load_policy(profile, "sft_full")
    with torch.no_grad():  # all logits of a state 100 lower: the same distribution
        policy.transformer.ln_f.bias[0] += 1000.0
        policy.lm_head.weight[:, 0] = -0.1
    ref = copy.deepcopy(policy)
    monkeypatch.setattr(runtime, "autocast", lambda where: torch.autocast("cpu", torch.bfloat16))
    trainer = PPOTrainer(policy, ref, words, tokenizer, prompts, SETTINGS)
    rollout = trainer.generate(range(8), "test")
    logprobs, values = trainer.compute_logprobs_and_values(rollout)
    with torch.autocast("cpu", torch.bfloat16):
        states = trainer._states(ref, rollout, torch.arange(8))
    exact = torch.log_softmax(ref.lm_head(states.float()) / 0.8, dim=-1)
    assert exact.dtype == logprobs.dtype == values.dtype == torch.float32
    expected = exact.gather(-1, rollout.responses.unsqueeze(-1)).squeeze(-1) * rollout.mask
    assert torch.allclose(logprobs, expected, atol=1e-4)
    assert trainer.check_sampler() < 0.05


def test_ppo_begins_by_giving_back_the_memory_of_trainings_before_it(stage, monkeypatch):
    trainer, calls = make(stage, dataclasses.replace(SETTINGS, updates=1)), []
    monkeypatch.setattr(runtime, "free_memory", lambda: calls.append(trainer.update))
    trainer.train()
    assert calls == [0]


def test_sampler_that_disagrees_with_the_trainer_is_refused_before_training(stage, monkeypatch):
    trainer = make(stage)
    sample = actors.sample

    def wrong(*args, **kwargs):
        drawn = sample(*args, **kwargs)
        return drawn._replace(logprobs=drawn.logprobs - 0.5)

    monkeypatch.setattr(actors, "sample", wrong)
    with pytest.raises(ValueError, match=r"differ from the trainer's by 0\.5 nats per token"):
        trainer.train()
    assert trainer.update == 0


def test_ratio_starts_at_one_whatever_the_sampler_says(stage, monkeypatch):
    """The old log-probabilities are the trainer's own: the first step on a batch clips nothing."""
    sample = actors.sample

    def off(*args, **kwargs):
        drawn = sample(*args, **kwargs)
        return drawn._replace(logprobs=drawn.logprobs - 0.05)

    monkeypatch.setattr(actors, "sample", off)
    row = make(stage, dataclasses.replace(SETTINGS, epochs=1, mini_batches=1)).step()
    assert row["approx_kl"] == pytest.approx(0, abs=1e-9) and row["clip_fraction"] == 0


def test_every_update_reaches_tensorboard(stage, tmp_path):
    trainer = make(stage, logs=tmp_path)
    trainer.step()
    trainer.step()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("ppo/reward")] == [8, 16]


def test_trainer_leaves_the_global_generators_as_they_were(stage):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    make(stage).train()
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1]


def test_experience_is_what_a_step_learns_from_and_trains_nothing(stage):
    trainer, other = make(stage), make(stage)
    row = trainer.step()
    before = [p.detach().clone() for p in other.parameters]
    order = other._next_prompts()
    experience = other.experience(order, draws=f"{SETTINGS.seed} update 0")
    assert {name: row[name] for name in experience.row} == experience.row
    assert all(torch.equal(old, new) for old, new in zip(before, other.parameters, strict=True))
    assert other.update == 0 and other.rows == []
