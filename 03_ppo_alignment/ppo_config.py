"""The settings of PPO for each profile, each with the reason for its value. rlhf.ppo.settings says what each means."""

from dataclasses import replace

from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile

_LAB = Settings(
    # By then the curve of the proxy has flattened, and the KL still rises.
    updates=10,
    # The advantage is whitened over the answers of an update, so a small batch makes a noisy sign.
    batch_size=128,
    # What memory allows.
    micro_batch_size=128,
    # Sixteen prompts, each answered eight times: an answer is compared with the others to its prompt. A value function
    # learns too little from a run's 1,280 answers to do better.
    answers_per_prompt=8,
    # Optimiser steps in each pass over a batch.
    mini_batches=4,
    # Passes over a batch: from the second on the answers are the old policy's, and clipping holds the steps back.
    epochs=4,
    # Longer prompts are left out: a batch is padded to its longest.
    max_prompt_tokens=256,
    # Constant after the warm-up; well below fine-tuning, because the target moves with the policy.
    learning_rate=1e-4,
    # Of OpenAI's baselines (Huang et al. 2024). At 1e-8 Adam gives each weight the same speed however small its
    # gradient, and most gradients of PPO are noise.
    adam_epsilon=1e-5,
    # Adam's first steps rest on very few gradients.
    warmup_updates=1,
    # In standard deviations of the reward over SFT answers: the reward model is only right near its data.
    kl_coef=0.1,
    # Far more than a run needs: beyond it the reward model judges what it has never seen, and more updates are wasted.
    kl_ceiling=30.0,
    # As in Schulman et al. 2017.
    cliprange=0.2,
    # Of TRL's value model, in standard deviations of the reward: the value starts far off, so not little.
    cliprange_value=1.0,
    # Of TRL's value model: its loss is larger than the policy's, and a small weight is enough.
    vf_coef=0.1,
    # Answers are short and the reward comes at the end, so nothing is discounted.
    gamma=1.0,
    # Generalised advantage estimation (Schulman et al. 2016) at its Monte Carlo end. Below 1, the reward at the end of
    # a fifty-token answer reaches the first words, which decide what it is about, mostly through the value model, and
    # that starts from nothing and sees ten batches.
    lam=1.0,
    # Stopping must pay.
    missing_eos_penalty=1.0,
)

_SETTINGS = {
    "smoke": replace(_LAB, updates=3, batch_size=8, micro_batch_size=8, answers_per_prompt=4, epochs=2),
    "lab": _LAB,
    # Published: 101 updates of 16 prompts at 1.41e-5, adaptive KL from 0.2. Twice the batch for half the noise; it does
    # not fit at once, and where TRL 1.12 accumulates gradients, it is right with a single mini-batch only.
    "gpt2": replace(
        _LAB,
        updates=100,
        batch_size=32,
        micro_batch_size=8,
        mini_batches=1,
        answers_per_prompt=4,
        learning_rate=1.41e-5,
        warmup_updates=10,
        kl_coef=0.05,
    ),
}
# With the lower two thirds frozen and run once for each batch, a step takes a fraction of its time and memory.
_SETTINGS["larger"] = replace(_SETTINGS["gpt2"], learning_rate=1e-5, trained_share=1 / 3)


# What `make grid` chose for each trainer, on validation prompts: results/evaluation/lab/ppo_grid.csv has every run.
_SEARCHED = {"lab": {"scratch": {"learning_rate": 1e-4, "epochs": 4}, "trl": {"learning_rate": 5e-5, "epochs": 4}}}
# TRL's PPO has one answer to a prompt and a value model, and trains all layers.
_TRAINERS = {"scratch": {}, "trl": {"answers_per_prompt": 1, "trained_share": 1.0}}


def get_settings(profile: Profile, trainer: str) -> Settings:
    """The settings of a profile for the trainer "scratch" (this project's) or "trl", which differ in what was searched.

    They have the profile's decoding and seed; its max_steps cuts the updates short.
    """
    searched = _SEARCHED.get(profile.name, {}).get(trainer, {})
    settings = replace(_SETTINGS[profile.name], **_TRAINERS[trainer], **searched)
    updates = min(settings.updates, profile.max_steps or settings.updates)
    return replace(
        settings,
        updates=updates,
        warmup_updates=min(settings.warmup_updates, updates // 2),
        # Those of the decoding: the evaluation samples from what was trained.
        max_new_tokens=profile.decoding.max_new_tokens,
        temperature=profile.decoding.temperature,
        seed=profile.seed,
    )
