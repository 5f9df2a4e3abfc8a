"""The settings of PPO for each profile, each with the reason for its value. rlhf.ppo.settings says what each means."""

from dataclasses import replace

from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile

_LAB = Settings(
    # The proxy gains most in the first dozen; more mostly buys KL, not quality.
    updates=12,
    # The advantage is whitened over the answers of an update, so a small batch makes a noisy sign.
    batch_size=128,
    # What memory allows.
    micro_batch_size=128,
    # All steps on a batch but the first are off-policy, which the clipping is there for.
    mini_batches=4,
    # For a small model new answers cost less than a second gradient from the old ones, and say more.
    epochs=1,
    # Longer prompts are left out: a batch is padded to its longest.
    max_prompt_tokens=256,
    # Constant after the warm-up; well below fine-tuning, because the target moves with the policy.
    learning_rate=2e-4,
    # Adam gives each weight the same speed however small its gradient, and most gradients of PPO are noise: at 1e-8 all
    # weights drift at once. About the size of the gradients, it lets only what rises above them move; in trials that
    # gave the same gain of reward for less than half of the KL.
    adam_epsilon=1e-3,
    # The head of the project's own trainer is a new layer that starts at zero: at the policy's rate it would hardly
    # move. TRL has one rate for both.
    value_learning_rate=1e-3,
    # The value function starts with no idea of the returns; let it learn some before the policy moves at full speed.
    warmup_updates=4,
    # In standard deviations of the reward over SFT answers: the reward model is only right near its data.
    kl_coef=0.1,
    # Far more than a run needs: beyond it the reward model judges what it has never seen, and more updates are wasted.
    kl_ceiling=30.0,
    # As in Schulman et al. 2017.
    cliprange=0.2,
    # In standard deviations of the reward: the value starts far off, so not little.
    cliprange_value=1.0,
    # The value loss is larger than the policy loss: a small weight is enough.
    vf_coef=0.1,
    # Answers are short and the reward comes at the end, so nothing is discounted.
    gamma=1.0,
    # Generalised advantage estimation (Schulman et al. 2016) at its Monte Carlo end. Below 1, the reward at the end of
    # a fifty-token answer reaches the first words, which decide what it is about, mostly through the value model, and
    # that starts from nothing and sees a dozen batches.
    lam=1.0,
    # Stopping must pay.
    missing_eos_penalty=1.0,
)

_SETTINGS = {
    "smoke": replace(_LAB, updates=3, batch_size=8, micro_batch_size=8),
    "lab": _LAB,
    # Published: 101 updates of 16 prompts at 1.41e-5, adaptive KL from 0.2. Twice the batch for half the noise; it does
    # not fit at once, and where TRL 1.12 accumulates gradients, it is right with a single mini-batch only.
    "gpt2": replace(
        _LAB,
        updates=100,
        batch_size=32,
        micro_batch_size=8,
        mini_batches=1,
        epochs=4,
        learning_rate=1.41e-5,
        adam_epsilon=1e-5,  # of OpenAI's baselines, as in Huang et al. 2024
        value_learning_rate=1e-4,
        warmup_updates=10,
        kl_coef=0.05,
    ),
}
_SETTINGS["larger"] = replace(_SETTINGS["gpt2"], learning_rate=1e-5)


def get_settings(profile: Profile) -> Settings:
    """The settings of a profile, with its decoding and seed; its max_steps cuts the updates short."""
    settings = _SETTINGS[profile.name]
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
