"""Stage 1's training: one SFTTrainer set-up for full fine-tuning, LoRA and QLoRA, so that only the method differs."""

import os

import pandas as pd
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from rlhf import models, outputs
from rlhf.profiles import Profile


def lora_config(profile: Profile) -> LoraConfig:
    """Adapters of the profile's size. fan_in_fan_out is for GPT-2's Conv1D layers; PEFT corrects it for 4-bit ones."""
    lora = profile.sft.lora
    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )


def make_trainer(
    profile: Profile,
    run: str,
    model,
    tokenizer,
    train,
    validation,
    *,
    learning_rate: float,
    epochs: float | None = None,
    adapter: LoraConfig | None = None,
) -> SFTTrainer:
    """A trainer on tokenised examples (prepare_data.tokenize); TensorBoard files go to outputs/logs/<profile>/<run>.

    With `adapter` only the adapter is trained. `epochs` replaces the profile's.
    """
    settings = profile.sft
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(outputs.logs_dir(profile) / run)
    epochs = epochs or settings.epochs
    steps = max(1, round(epochs * len(train) / settings.batch_size / settings.gradient_accumulation))
    steps = min(steps, profile.max_steps or steps)
    config = SFTConfig(
        output_dir=str(outputs.logs_dir(profile) / run),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=min(settings.warmup_steps, steps // 5),
        max_grad_norm=settings.max_grad_norm,
        max_length=None,  # longer examples were left out by name, so nothing is cut here
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=max(1, steps // settings.evaluations),
        logging_steps=max(1, steps // (settings.evaluations * 4)),
        save_strategy="no",
        report_to=["tensorboard"],
        gradient_checkpointing=False,
        bf16=models.use_bf16(),
        use_cpu=models.device().type == "cpu",
        seed=profile.seed,
    )
    return SFTTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=tokenizer,
        peft_config=adapter,
    )


def loss_curve(trainer, run: str) -> pd.DataFrame:
    """Training and validation loss over the steps of a trainer: columns run, split, step, loss."""
    rows = []
    for entry in trainer.state.log_history:
        for split, key in (("train", "loss"), ("validation", "eval_loss")):
            if key in entry:
                rows.append((run, split, entry["step"], entry[key]))
    return pd.DataFrame(rows, columns=["run", "split", "step", "loss"])


def share_of(examples, share: float, seed: int):
    """A random share of the examples, at least one batch of 8: enough to compare learning rates."""
    return examples.shuffle(seed=seed).select(range(min(len(examples), max(8, round(share * len(examples))))))
