"""Stage 2's training: TRL's RewardTrainer on an adapter with a score head."""

import os
import random

import pandas as pd
from datasets import Dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from rlhf import models, outputs
from rlhf.profiles import Profile

TOKEN_COLUMNS = ["chosen_ids", "rejected_ids"]


def lora_config(profile: Profile) -> LoraConfig:
    """Adapters on the trunk; `score`, the untrained head, is trained and saved whole."""
    lora = profile.reward.lora
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=["score"],
        task_type="SEQ_CLS",
    )


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
    for rows in (by_difference[: round(close_first * len(pairs))], list(range(len(pairs)))):
        rng.shuffle(rows)
        for start in range(0, len(rows), 20 * batch_size):
            run = sorted(rows[start : start + 20 * batch_size], key=lambda i: max(lengths[i]))
            batches = [run[i : i + batch_size] for i in range(0, len(run), batch_size)]
            rng.shuffle(batches)
            order += [i for batch in batches for i in batch]
    return order


def make_trainer(profile: Profile, model, tokenizer, train, validation) -> RewardTrainer:
    """A trainer of the Bradley-Terry loss -log sigmoid(r(chosen) - r(rejected)) on prepare_reward_dataset's splits."""
    settings = profile.reward
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(outputs.logs_dir(profile) / "reward_model")
    train = train.select(training_order(train, settings.close_pairs_first, settings.batch_size, profile.seed))
    steps = max(1, len(train) // (settings.batch_size * settings.gradient_accumulation))
    steps = min(steps, profile.max_steps or steps)
    config = RewardConfig(
        output_dir=str(outputs.logs_dir(profile) / "reward_model"),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=min(settings.warmup_steps, steps // 5),
        max_length=None,  # longer pairs were left out by name
        train_sampling_strategy="sequential",
        eval_strategy="steps",
        eval_steps=-(-steps // settings.evaluations),
        logging_steps=max(1, steps // 40),
        save_strategy="no",
        report_to=["tensorboard"],
        activation_checkpointing=False,
        bf16=models.use_bf16(),
        use_cpu=models.device().type == "cpu",
        seed=profile.seed,
    )
    return RewardTrainer(
        model=model,
        args=config,
        train_dataset=train.select_columns(TOKEN_COLUMNS),
        eval_dataset=validation.select_columns(TOKEN_COLUMNS),
        processing_class=tokenizer,
        peft_config=lora_config(profile),
    )


def training_curve(trainer) -> pd.DataFrame:
    """Loss and accuracy over the steps: columns split, step, loss, accuracy."""
    rows = []
    for entry in trainer.state.log_history:
        for split, prefix in (("train", ""), ("validation", "eval_")):
            if f"{prefix}loss" in entry:
                rows.append((split, entry["step"], entry[f"{prefix}loss"], entry[f"{prefix}accuracy"]))
    return pd.DataFrame(rows, columns=["split", "step", "loss", "accuracy"])
