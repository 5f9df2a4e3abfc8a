"""What the trainers of all stages are set up with in the same way: where they log, on what they run, adapters."""

import os

from rlhf import models, outputs
from rlhf.profiles import LoraSettings, Profile, RewardSettings, SFTSettings

from peft import LoraConfig


def run_arguments(profile: Profile, run: str) -> dict:
    """Arguments of any TRL trainer: seed, device, TensorBoard files in outputs/logs/<profile>/<run>, no checkpoints.

    The trainer takes the folder of its TensorBoard files from the environment when it starts.
    """
    folder = str(outputs.logs_dir(profile) / run)
    os.environ["TENSORBOARD_LOGGING_DIR"] = folder
    return {
        "output_dir": folder,
        "report_to": ["tensorboard"],
        "save_strategy": "no",
        "disable_tqdm": False,  # set_up quiets the libraries, which would turn the table of losses into printed lines
        "use_cpu": models.device().type == "cpu",
        "seed": profile.seed,
    }


def fit_arguments(
    profile: Profile, run: str, settings: SFTSettings | RewardSettings, *, examples: float, evaluations: int
) -> dict:
    """Arguments that SFTTrainer and RewardTrainer share: steps, batches, schedule, evaluation, precision.

    `examples` counts an example once for each time that it is seen; `evaluations` of the validation loss may be 0.
    """
    steps = max(1, round(examples / settings.batch_size / settings.gradient_accumulation))
    steps = min(steps, profile.max_steps or steps)
    return run_arguments(profile, run) | {
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "lr_scheduler_type": settings.scheduler,
        "warmup_steps": min(settings.warmup_steps, steps // 5),
        "max_length": None,  # longer texts were left out by name, so nothing is cut here
        "eval_strategy": "steps" if evaluations else "no",
        "eval_steps": -(-steps // max(1, evaluations)),
        "logging_steps": max(1, steps // 40),
        "activation_checkpointing": False,
        "bf16": models.use_bf16(),
    }


def lora_config(lora: LoraSettings, task_type: str, modules_to_save: list[str] | None = None) -> LoraConfig:
    """PEFT's configuration of an adapter; `modules_to_save` are trained and saved whole."""
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        modules_to_save=modules_to_save,
        task_type=task_type,
    )
