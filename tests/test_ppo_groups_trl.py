"""RLOO and GRPO by the project's trainer: what it learns from a rollout is what TRL's own trainers learn from it."""

import dataclasses
import statistics

from rlhf import models
from rlhf.generation import encode_prompts
from rlhf.ppo import algorithm
from rlhf.ppo.trainer import PPOTrainer, Rollout
from rlhf.template import format_prompt

import pytest
import torch
from datasets import Dataset
from ppo_stage import SETTINGS, words
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

ANSWERS = 4


def one_step(trainer_class, config_class, policy, tokenizer, prompts, folder, **options):
    """What one step of a trainer of TRL has learned from, and the gradients that it took."""
    seen = {}

    class Recorder(trainer_class):
        def _compute_loss(self, model, inputs):
            seen.update(inputs)
            return super()._compute_loss(model, inputs)

    class Gradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **_):
            seen["gradients"] = {name: p.grad.clone() for name, p in model.named_parameters()}

    config = config_class(
        output_dir=str(folder), max_steps=1, per_device_train_batch_size=2 * ANSWERS, num_generations=ANSWERS,
        max_completion_length=SETTINGS.max_new_tokens, temperature=SETTINGS.temperature, max_grad_norm=1e9,
        report_to=[], save_strategy="no", bf16=False, use_cpu=True, activation_checkpointing=False, **options,
    )  # fmt: skip
    trainer = Recorder(
        model=policy,
        reward_funcs=lambda prompts, completions, **_: words(prompts, completions, None),
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [format_prompt(prompt) for prompt in prompts]}),
        processing_class=tokenizer,
        callbacks=[Gradients()],
    )
    trainer.train()
    return seen


@pytest.mark.parametrize(
    ("name", "trl", "options"),
    [
        ("rloo", (RLOOTrainer, RLOOConfig), {"beta": 0.5}),
        ("grpo", (GRPOTrainer, GRPOConfig), {"beta": 0.0, "loss_type": "grpo"}),
        ("dr_grpo", (GRPOTrainer, GRPOConfig), {"beta": 0.0, "loss_type": "dr_grpo", "scale_rewards": "none"}),
    ],
)
def test_advantages_and_gradient_are_those_of_trl_on_the_same_rollout(stage, tmp_path, monkeypatch, name, trl, options):
    """The gradient is the same but for a factor, as the losses divide by numbers of answers, of tokens, of room.

    TRL's GRPO has the KL in its loss, the project's in the reward, so there is none here. The prompts have the same
    number of tokens: TRL leaves GPT-2's positions at the place in the row, which padding on the left shifts.
    """
    profile, tokenizer, prompts = stage
    lengths = [len(ids) for ids in encode_prompts(tokenizer, prompts)]
    prompts = [p for p, length in zip(prompts, lengths, strict=True) if length == statistics.mode(lengths)][:2]
    policy, ref = (models.load_policy(profile, "sft_full") for _ in range(2))
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # so that there is a KL, and some answers end
        for parameter in policy.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
        policy.transformer.ln_f.bias[0] += 2.0
        policy.lm_head.weight[tokenizer.eos_token_id, 0] += 2.0
    start = {key: value.clone() for key, value in policy.state_dict().items()}
    seen = one_step(*trl, policy, tokenizer, prompts, tmp_path, **options)
    order = sorted(range(2 * ANSWERS), key=lambda i: seen["prompt_ids"][i].tolist())  # TRL has shuffled the answers
    rows = {key: seen[key][order] for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")}
    expected = seen["advantages"][order]

    policy.load_state_dict(start)
    settings = dataclasses.replace(
        SETTINGS, answers_per_prompt=ANSWERS, lam=1.0, kl_coef=options["beta"], advantage=name, whiten_advantages=False
    )
    ours = PPOTrainer(policy, ref, words, tokenizer, prompts, settings)
    responses, mask = rows["completion_ids"], rows["completion_mask"]
    rollout = Rollout(
        sequences=torch.cat([rows["prompt_ids"], responses], dim=1),
        attention=torch.cat([rows["prompt_mask"], mask], dim=1),
        responses=responses,
        mask=mask,
        ended=(responses == tokenizer.eos_token_id).any(dim=1),
        sampler_logprobs=torch.zeros(mask.shape),
    )
    assert torch.equal(mask, algorithm.response_mask(responses, tokenizer.eos_token_id))
    monkeypatch.setattr(ours, "generate", lambda *_: rollout)
    advantages = ours.experience([0] * len(mask), "test").advantages
    lengths = mask.sum(dim=1)
    each = advantages[:, 0] * (lengths / lengths.float().mean() if name == "grpo" else 1)
    assert each.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert each.abs().max() > 0.1 and lengths.min() < lengths.max()

    policy.zero_grad()
    logprobs, _ = ours.forward(rollout, torch.arange(len(mask)))
    loss, _ = algorithm.policy_loss(logprobs, logprobs.detach(), advantages, mask, settings.cliprange)
    loss.backward()
    room = len(mask) * SETTINGS.max_new_tokens
    factor = {"rloo": mask.sum() / len(mask), "grpo": 1.0, "dr_grpo": mask.sum() / room}[name]
    for key, parameter in policy.named_parameters():
        assert torch.allclose(factor * parameter.grad, seen["gradients"][key], atol=1e-5), key
    assert max(gradient.abs().max() for gradient in seen["gradients"].values()) > 1e-3
