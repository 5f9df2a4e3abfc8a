"""Stage 2's training: TRL's RewardTrainer on an adapter with a score head."""

import random

from rlhf.profiles import Profile
from rlhf.training import fit_arguments, lora_config

import pandas as pd
from datasets import Dataset
from trl import RewardConfig, RewardTrainer

TOKEN_COLUMNS = ["chosen_ids", "rejected_ids"]


def training_order(pairs: Dataset, close_first: float, batch_size: int, seed: int) -> list[int]:
    """The rows of `pairs` in the order of training: the share `close_first` closest in length, then all of them.

    Where one answer is rambling or cut off, length and style give it away, and a model that has learned to look at them
    pays little for not reading further. Pairs of equal length are mostly those where only the content differs. Coming
    first, they make the model compare answer and prompt before the shortcuts pay.

    Batches are of similar length, for little padding: each run of 20 batches is sorted, cut and shuffled.
    """
    lengths = [(len(c), len(r)) for c, r in zip(pairs["chosen_ids"], pairs["rejected_ids"], strict=True)]
    rng = random.Random(seed)
    by_difference = sorted(range(len(pairs)), key=lambda i: abs(lengths[i][0] - lengths[i][1]))
    order = []
    close = round(close_first * len(pairs) / batch_size) * batch_size  # whole batches, so that none mixes both parts
    for rows in (by_difference[:close], list(range(len(pairs)))):
        rng.shuffle(rows)
        for start in range(0, len(rows), 20 * batch_size):
            run = sorted(rows[start : start + 20 * batch_size], key=lambda i: max(lengths[i]))
            batches = [run[i : i + batch_size] for i in range(0, len(run), batch_size)]
            rng.shuffle(batches)
            order += [i for batch in batches for i in batch]
    return order


def make_trainer(profile: Profile, model, tokenizer, train, validation) -> RewardTrainer:
    """A trainer of the Bradley-Terry loss -log sigmoid(r(chosen) - r(rejected)) on prepare_reward_dataset's splits.

    The loss leaves the level of each prompt's scores free, and left alone it drifts by more than answers differ. That
    would be noise in PPO's advantages, so (r(chosen) + r(rejected))^2 is added with a small weight, which pulls the
    level of every prompt to zero (Eisenstein et al. 2023, "Helping or Herding?").
    """
    settings = profile.reward
    train = train.select(training_order(train, settings.close_pairs_first, settings.batch_size, profile.seed))
    config = RewardConfig(
        **fit_arguments(profile, "reward_model", settings, examples=len(train), evaluations=settings.evaluations),
        learning_rate=settings.learning_rate,
        center_rewards_coefficient=settings.centering,
        train_sampling_strategy="sequential",  # the order is training_order's
    )
    return RewardTrainer(
        model=model,
        args=config,
        train_dataset=train.select_columns(TOKEN_COLUMNS),
        eval_dataset=validation.select_columns(TOKEN_COLUMNS),
        processing_class=tokenizer,
        # The head is new: it is trained and saved whole, beside the adapters on the trunk.
        peft_config=lora_config(settings.lora, "SEQ_CLS", modules_to_save=["score"]),
    )


def training_curve(trainer) -> pd.DataFrame:
    """Loss and accuracy over the steps: columns split, step, loss, accuracy."""
    rows = []
    for entry in trainer.state.log_history:
        for split, prefix in (("train", ""), ("validation", "eval_")):
            if f"{prefix}loss" in entry:
                rows.append((split, entry["step"], entry[f"{prefix}loss"], entry[f"{prefix}accuracy"]))
    return pd.DataFrame(rows, columns=["split", "step", "loss", "accuracy"])
