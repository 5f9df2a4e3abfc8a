"""Train the reward model from the fine-tuned policy, as notebook 2.2 does. Start it by `accelerate launch`."""

import os

os.environ["RLHF_LAUNCHED"] = "1"  # before rlhf is imported, which hides a launcher from notebooks

from rlhf import launch, models, outputs
from rlhf.profiles import Profile, load_profile
from rlhf.reward.pairs import load_pairs, training_pairs
from rlhf.reward.training import make_trainer, training_curve

PROFILE = ""


def train(profile: Profile, first: bool) -> None:
    tokenizer = models.load_tokenizer(profile)
    pairs = load_pairs(profile, tokenizer)
    rows = training_pairs(profile, tokenizer, pairs["train"])
    model = models.new_reward_model(profile, profile.seed)
    trainer = make_trainer(profile, model, tokenizer, rows, pairs["validation"])
    trainer.train()
    launch.save(profile, "reward_model_final", trainer, tokenizer)
    if first:
        outputs.write_csv(profile, "reward_curve.csv", training_curve(trainer))


def main() -> None:
    profile = load_profile(PROFILE)
    with launch.processes(profile) as first:
        train(profile, first)


if __name__ == "__main__":
    main()
