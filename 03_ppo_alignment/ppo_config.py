"""The settings of PPO, each with the reason for its value, and the trainer that TRL makes of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from rlhf.profiles import Profile
from rlhf.training import run_arguments

import pandas as pd
from trl.experimental.ppo import PPOConfig, PPOTrainer


@dataclass(frozen=True)
class PPOSettings:
    """What PPO is run with. The comments say why each value is what it is."""

    # One update is one batch of answers. The proxy gains most in the first dozen; more mostly buys KL, not quality.
    updates: int = 12
    # Answers per update: the advantage is whitened over them, so a small batch makes a noisy sign.
    batch_size: int = 128
    # Answers that a forward pass of the training takes at once; what memory allows.
    micro_batch_size: int = 128
    # Four optimiser steps per pass over the batch: all but the first are off-policy, which the clipping is there for.
    mini_batches: int = 4
    # Prompts longer than this (tokens, with template) are left out: a batch is padded to its longest.
    max_prompt_tokens: int = 256
    # Passes over each batch. For a small model new answers cost less than a second gradient from the old ones, and
    # say more.
    epochs: int = 1
    # Constant after the warm-up; well below fine-tuning, because the target moves with the policy.
    learning_rate: float = 1e-4
    # The value head starts with no idea of the returns; let it learn some before the policy moves at full speed.
    warmup_updates: int = 4
    # Price of one nat of KL from the SFT policy, in standard deviations of the reward over SFT answers: the reward
    # model is only right near its data.
    kl_coef: float = 0.3
    # Range of the probability ratio that still earns (Schulman et al. 2017).
    clip: float = 0.2
    # How far the value may move in one update, in standard deviations of the reward: it starts far off, so not little.
    value_clip: float = 1.0
    # The value loss is larger than the policy loss and has its own network: a small weight is enough.
    value_coef: float = 0.1
    # Answers are short and the reward comes at the end, so nothing is discounted.
    gamma: float = 1.0
    # Generalised advantage estimation (Schulman et al. 2016) at its Monte Carlo end. Below 1, the reward at the end of
    # a fifty-token answer reaches the first words, which decide what it is about, mostly through the value model, and
    # that starts from nothing and sees a dozen batches.
    lam: float = 1.0
    # Subtracted from the score of an answer that did not end: stopping must pay.
    missing_eos_penalty: float = 1.0


_SETTINGS = {
    "smoke": PPOSettings(updates=3, batch_size=8, micro_batch_size=8, warmup_updates=1),
    "lab": PPOSettings(),
    # Published: 101 updates of 16 prompts at 1.41e-5, adaptive KL from 0.2. Twice the batch for half the noise; it does
    # not fit at once, and where TRL 1.12 accumulates gradients, it is right with a single mini-batch only.
    "gpt2": PPOSettings(
        updates=100,
        batch_size=32,
        micro_batch_size=8,
        mini_batches=1,
        epochs=4,
        learning_rate=1.41e-5,
        warmup_updates=10,
        kl_coef=0.05,
    ),
}
_SETTINGS["larger"] = replace(_SETTINGS["gpt2"], learning_rate=1e-5)


def get_settings(profile: Profile) -> PPOSettings:
    settings = _SETTINGS[profile.name]
    return replace(settings, updates=min(settings.updates, profile.max_steps or settings.updates))


@contextmanager
def record_rollouts(policy, tokenizer) -> Iterator[list[dict[str, float]]]:
    """While open, each micro-batch that `policy` generates adds its response_length (tokens) and stop_rate."""
    rollouts: list[dict[str, float]] = []
    generate = policy.generate

    def recording_generate(*args, input_ids, **kwargs):
        generated = generate(*args, input_ids=input_ids, **kwargs)
        answers = generated.sequences[:, input_ids.shape[1] :]
        ended = (answers == tokenizer.eos_token_id).any(dim=1)
        lengths = (answers != tokenizer.pad_token_id).sum(dim=1)
        rollouts.append({"response_length": lengths.float().mean().item(), "stop_rate": ended.float().mean().item()})
        return generated

    policy.generate = recording_generate
    try:
        yield rollouts
    finally:
        del policy.generate  # the method of the class shows again


class RecordingPPOTrainer(PPOTrainer):
    """TRL's trainer, which also records each rollout's mean answer length and share of answers that ended."""

    def train(self) -> None:
        with record_rollouts(self.policy_model, self.processing_class) as self.rollouts:
            super().train()


def make_trainer(
    profile: Profile, policy, reference, reward_model, value_model, tokenizer, prompts
) -> RecordingPPOTrainer:
    """TRL's PPOTrainer with the profile's settings; it records what it generates in `trainer.rollouts`.

    Raises ValueError for fewer prompts than a batch, with which TRL's loop would never end, for models that are the
    same object, with which the reward would drift with the value function, and for a frozen policy or value model.
    """
    settings = get_settings(profile)
    if len(prompts) < settings.batch_size:
        raise ValueError(
            f"{len(prompts)} prompts are fewer than a batch of {settings.batch_size}; give more data or lower "
            f"batch_size in 03_ppo_alignment/ppo_config.py."
        )
    if len({id(model) for model in (policy, reference, reward_model, value_model)}) < 4:
        raise ValueError("policy, reference, reward model and value model must be four separate models.")
    for name, model in (("policy", policy), ("value model", value_model)):
        frozen = sum(not parameter.requires_grad for parameter in model.parameters())
        if frozen:
            raise ValueError(
                f"{frozen} weights of the {name} are frozen and would not learn; call requires_grad_(True)."
            )
    tokenizer.padding_side = "left"  # a decoder continues from the last position, which must be the prompt's
    config = PPOConfig(
        **run_arguments(profile, "ppo"),
        total_episodes=settings.updates * settings.batch_size,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // settings.micro_batch_size,
        num_mini_batches=settings.mini_batches,
        num_ppo_epochs=settings.epochs,
        local_rollout_forward_batch_size=settings.micro_batch_size,
        response_length=profile.decoding.max_new_tokens,
        temperature=profile.decoding.temperature,
        stop_token="eos",
        missing_eos_penalty=settings.missing_eos_penalty,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=min(settings.warmup_updates, settings.updates // 2),
        kl_coef=settings.kl_coef,
        cliprange=settings.clip,
        cliprange_value=settings.value_clip,
        vf_coef=settings.value_coef,
        gamma=settings.gamma,
        lam=settings.lam,
        num_sample_generations=0,
        bf16=False,  # TRL 1.12 ignores it on transformers 5
    )
    return RecordingPPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=prompts,
    )


def training_curve(trainer: RecordingPPOTrainer) -> pd.DataFrame:
    """One row per update: episode, reward, kl, entropy, losses, clip fraction, answer length, stop rate.

    kl is in nats per answer, entropy in nats per token. The entropy is the mean surprise of the sampled tokens: TRL's
    own average (policy/entropy_avg) counts padding as if it were answer.
    """
    names = {
        "episode": "episode",
        "objective/scores": "reward",
        "objective/kl": "kl",
        "objective/rlhf_reward": "reward_minus_kl",
        "loss/policy_avg": "policy_loss",
        "loss/value_avg": "value_loss",
        "policy/clipfrac_avg": "clip_fraction",
        "policy/approxkl_avg": "approx_kl",
        "lr": "learning_rate",
    }
    logged = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    curve = pd.DataFrame([{name: entry[key] for key, name in names.items()} for entry in logged])
    rollouts = pd.DataFrame(trainer.rollouts)  # as many of equal size for each update
    rollouts = rollouts.groupby(rollouts.index // (len(rollouts) // len(curve))).mean()
    curve["entropy"] = [entry["objective/entropy"] for entry in logged] / rollouts.response_length
    return curve.join(rollouts)
