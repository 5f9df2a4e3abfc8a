"""Align the policy by TRL's PPO, as notebook 3.1 does, set by ppo_config.py. Start it by `accelerate launch`."""

import os

os.environ["RLHF_LAUNCHED"] = "1"  # before rlhf is imported, which hides a launcher from notebooks

from rlhf import data, launch, models, outputs
from rlhf.evaluation.answers import reward_spread
from rlhf.ppo.trl import make_trainer, training_curve
from rlhf.profiles import Profile, load_profile
from rlhf.reward import scoring

from ppo_config import get_settings
from prepare_data import get_ppo_prompts

PROFILE = ""


def train(profile: Profile, first: bool) -> None:
    settings = get_settings(profile, "trl")
    tokenizer = models.load_tokenizer(profile)
    questions = data.training_prompts(profile, tokenizer, settings.max_prompt_tokens)
    policy, reference = (models.load_policy(profile, models.start_key(profile)) for _ in range(2))
    reward_model, value_model = models.load_reward_model(profile), models.new_value_model(profile)
    spread = reward_spread(profile, policy, reward_model, tokenizer, questions)
    scoring.rescale(reward_model, 1 / spread)  # the settings are in units of it
    if first:
        outputs.write_json(profile, "reward_unit.json", {"logits": spread})
        outputs.update_run(profile, ppo_trl=vars(settings))
    four = policy, reference, reward_model, value_model
    trainer = make_trainer(profile, settings, *four, tokenizer, get_ppo_prompts(questions, tokenizer))
    trainer.train()
    curve = training_curve(trainer).assign(model="ppo")
    launch.save(profile, "ppo_trl_final", trainer, tokenizer)
    if first:
        outputs.merge_csv(profile, "ppo_curve.csv", curve, key="model")


def main() -> None:
    profile = load_profile(PROFILE)
    with launch.processes(profile) as first:
        train(profile, first)


if __name__ == "__main__":
    main()
