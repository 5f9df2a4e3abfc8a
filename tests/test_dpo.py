"""The losses of DPO and IPO: closed forms, TRL's own on the same pairs, and what the trainer is given."""

import math

from rlhf import dpo, generation, models
from rlhf.generation import Answer
from rlhf.reward.pairs import load_pairs

import numpy as np
import pytest
import torch


def four(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_losses_at_the_reference_are_those_of_an_even_chance():
    same = torch.tensor([-30.0, -80.0])
    assert dpo.dpo_loss(same, same - 5, same, same - 5, beta=0.3).tolist() == pytest.approx([math.log(2)] * 2)
    assert dpo.ipo_loss(same, same - 5, same, same - 5, beta=0.25).tolist() == [4.0, 4.0]  # (1 / (2 beta))^2


def test_losses_are_the_published_ones():
    given = four([-10.0, -20.0], [-15.0, -18.0], [-12.0, -20.0], [-14.0, -19.0])
    margins = [(-10 + 12) - (-15 + 14), (-20 + 20) - (-18 + 19)]
    assert margins == [3, -1]
    expected = [math.log(1 + math.exp(-0.5 * margin)) for margin in margins]
    assert dpo.dpo_loss(*given, beta=0.5).tolist() == pytest.approx(expected)
    assert dpo.ipo_loss(*given, beta=0.5).tolist() == pytest.approx([4.0, 4.0])  # (3 - 1)^2 and (-1 - 1)^2


def test_dpo_always_asks_for_more_and_ipo_has_an_aim():
    margins = torch.tensor([0.5, 1.0, 1.5, 20.0], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(4, dtype=torch.float64)
    (slope,) = torch.autograd.grad(dpo.dpo_loss(margins, zero, zero, zero, 0.5).sum(), margins)
    assert (slope < 0).all()
    (slope,) = torch.autograd.grad(dpo.ipo_loss(margins, zero, zero, zero, 0.5).sum(), margins)
    assert torch.sign(slope).tolist() == [-1, 0, 1, 1]


@pytest.fixture
def pairs(profile_with_sft):
    """Profile, tokenizer, rows for the trainer and the same answers for answer_logprobs; one was cut off."""
    tokenizer = models.load_tokenizer(profile_with_sft)
    test = load_pairs(profile_with_sft, tokenizer)["test"].select(range(8))
    prompts = list(test["prompt"])
    starts = [len(ids) for ids in generation.encode_prompts(tokenizer, prompts)]
    sides = [[ids[at:] for ids, at in zip(test[f"{s}_ids"], starts, strict=True)] for s in ("chosen", "rejected")]
    sides[1][0] = sides[1][0][:-3]
    return profile_with_sft, tokenizer, prompts, dpo.pair_rows(tokenizer, prompts, *sides), sides


def changed_policy(profile):
    policy, noise = models.load_policy(profile, "sft_full"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
    return policy


@pytest.mark.parametrize(("loss", "beta"), [("dpo", 0.1), ("ipo", 0.4)])
def test_loss_is_that_of_trl_on_the_same_pairs(pairs, loss, beta):
    """TRL pads and batches the pairs and takes its own log-probabilities; ours come from each answer alone."""
    profile, tokenizer, prompts, rows, sides = pairs
    policy, ref = changed_policy(profile), models.load_policy(profile, "sft_full")
    options = {"batch_size": 4}
    logprobs = []
    for model in (policy, ref):
        for side in sides:
            answers = [Answer("", tuple(ids), True) for ids in side]
            logprobs.append(torch.from_numpy(generation.answer_logprobs(model, tokenizer, prompts, answers, **options)))
    if loss == "ipo":
        lengths = [torch.tensor([len(ids) for ids in side]) for side in sides]
        logprobs = [of / length for of, length in zip(logprobs, lengths * 2, strict=True)]
    ours = {"dpo": dpo.dpo_loss, "ipo": dpo.ipo_loss}[loss](*logprobs, beta)
    trainer = dpo.make_trainer(profile, "test", policy, ref, tokenizer, rows, loss=loss, beta=beta, learning_rate=1e-3)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        theirs = trainer.compute_loss(trainer.model.eval(), batch)
    assert theirs.item() == pytest.approx(ours.mean().item(), abs=1e-5)
    assert ours.std() > 1e-3  # the pairs differ


def test_reference_computed_before_is_that_of_trl_and_is_not_computed_again(pairs, monkeypatch):
    profile, tokenizer, _, rows, _ = pairs
    policy, ref = changed_policy(profile), models.load_policy(profile, "sft_full")
    options = {"loss": "dpo", "beta": 0.1, "learning_rate": 1e-3}
    theirs = dpo.make_trainer(profile, "test", policy, ref, tokenizer, rows, **options).train_dataset
    shared = dpo.with_reference(ref, tokenizer, rows, 4)
    for name in dpo.REFERENCE:
        np.testing.assert_allclose(shared[name], theirs[name], atol=1e-4)
    monkeypatch.setattr(dpo._DPOTrainer, "compute_ref_log_probs", None)
    trainer = dpo.make_trainer(profile, "test", policy, ref, tokenizer, shared, **options)
    assert trainer.train_dataset["ref_chosen_logps"] == shared["ref_chosen_logps"]


def test_trainer_takes_the_tokens_as_they_are_in_their_order(pairs):
    profile, tokenizer, prompts, rows, sides = pairs
    policy, ref = (models.load_policy(profile, "sft_full") for _ in range(2))
    trainer = dpo.make_trainer(profile, "test", policy, ref, tokenizer, rows, loss="dpo", beta=0.1, learning_rate=1e-3)
    seen = [batch["input_ids"] for batch in trainer.get_train_dataloader()]
    size, starts = len(seen[0]) // 2, generation.encode_prompts(tokenizer, prompts)
    for row in range(2):
        for side, half in zip(sides, (0, size), strict=True):
            whole = starts[row] + side[row]
            assert seen[0][half + row][: len(whole)].tolist() == whole
    assert sides[0][0][-1] == tokenizer.eos_token_id != sides[1][0][-1]


def test_training_widens_the_margin_and_leaves_the_reference_alone(pairs):
    profile, tokenizer, prompts, rows, sides = pairs
    policy, ref = (models.load_policy(profile, "sft_full") for _ in range(2))
    before = [p.detach().clone() for p in ref.parameters()]
    state = torch.get_rng_state()
    options = {"loss": "dpo", "beta": 0.1, "learning_rate": 1e-3, "epochs": 8}
    trainer = dpo.make_trainer(profile, "test", policy, ref, tokenizer, rows, **options)
    trainer.train()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(old, new) for old, new in zip(before, ref.parameters(), strict=True))
    answers = [[Answer("", tuple(ids), True) for ids in side] for side in sides]
    after = [generation.answer_logprobs(policy, tokenizer, prompts, side, batch_size=8) for side in answers]
    start = [generation.answer_logprobs(ref, tokenizer, prompts, side, batch_size=8) for side in answers]
    assert np.mean((after[0] - start[0]) - (after[1] - start[1])) > 0.5
