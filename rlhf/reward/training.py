"""Training a reward model: TRL's RewardTrainer on an adapter with a score head."""

from rlhf import runtime
from rlhf.adapters import HEAD
from rlhf.profiles import Profile
from rlhf.training import StageTrainer, fit_arguments, logged, lora_config, train_in_float32

import pandas as pd
from datasets import Dataset
from peft import PeftModel
from trl import RewardConfig, RewardTrainer


class _RewardTrainer(StageTrainer, RewardTrainer):
    pass


def make_trainer(profile: Profile, model, tokenizer, train: Dataset, validation: Dataset) -> RewardTrainer:
    """A trainer of the Bradley-Terry loss -log sigmoid(r(chosen) - r(rejected)); it takes `train` in its order.

    model: that of models.new_reward_model; it gets an adapter where it has none yet.

    The loss leaves the level of each prompt's scores free, and left alone it drifts by more than answers differ. That
    would be noise in PPO's advantages, so (r(chosen) + r(rejected))^2 is added with a small weight, which pulls the
    level of every prompt to zero (Eisenstein et al. 2023, "Helping or Herding?").
    """
    settings = profile.reward
    # The head is new: it is trained and saved whole, beside the adapters on the trunk.
    options = {"modules_to_save": [HEAD]}
    adapter = None if isinstance(model, PeftModel) else lora_config(settings.lora, "SEQ_CLS", model, **options)
    config = RewardConfig(
        **fit_arguments(profile, "reward_model", settings, examples=len(train), evaluations=settings.evaluations),
        learning_rate=settings.learning_rate,
        center_rewards_coefficient=settings.center_rewards_coefficient,
        train_sampling_strategy="sequential",  # the order is that of pairs.training_pairs
    )
    with runtime.isolated_generator(profile.seed):  # the adapter's first weights are drawn here
        trainer = _RewardTrainer(
            model=model,
            args=config,
            train_dataset=train.select_columns(["chosen_ids", "rejected_ids"]),
            eval_dataset=validation.select_columns(["chosen_ids", "rejected_ids"]),
            processing_class=tokenizer,
            peft_config=adapter,
        )
    train_in_float32(trainer.model)
    return trainer


def training_curve(trainer) -> pd.DataFrame:
    """Loss and accuracy over the steps: columns split, step, loss, accuracy."""
    return logged(trainer, "loss", "accuracy")
