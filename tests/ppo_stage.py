"""What the tests of PPO share: small settings, a reward by hand, a trainer on the smoke profile's models."""

from rlhf import models
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer

SETTINGS = Settings(
    updates=2,
    batch_size=8,
    micro_batch_size=3,
    mini_batches=2,
    epochs=2,
    max_new_tokens=12,
    learning_rate=1e-3,
    temperature=0.8,
    warmup_updates=1,
)


def words(prompts, responses, ended):
    """A reward by hand: more distinct words."""
    return [float(len(set(text.split()))) for text in responses]


def make(stage, settings=SETTINGS, reward_fn=words, **options):
    profile, tokenizer, prompts = stage
    policy, ref = models.load_policy(profile, "sft_full"), models.load_policy(profile, "sft_full")
    return PPOTrainer(policy, ref, reward_fn, tokenizer, prompts, settings, **options)
