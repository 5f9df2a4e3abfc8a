"""What the trainers of all stages are set up with in the same way: logs, device, learning rate, adapters."""

import math
import os
from pathlib import Path

from rlhf import finite, outputs, runtime
from rlhf.profiles import LoraSettings, Profile
from rlhf.resume import Resumable

import pandas as pd
import torch
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler


def without_table(trainer):
    """The trainer, which no longer shows its table of losses: that is for a notebook."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def lr_scale(step: int, warmup_steps: int, total_steps: int | None = None) -> float:
    """The share of the learning rate that optimiser step `step`, counted from 0, takes.

    It rises in equal parts and reaches 1 after the warm-up: step 0 takes 1 / (warmup_steps + 1), not 0 as in
    transformers' schedules, where the first step changes nothing. Then it stays, or with `total_steps` falls along half
    a cosine (Loshchilov and Hutter 2017) that would reach 0 one step after the last, so the last changes something too.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if total_steps is None:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))))


class StageTrainer(Resumable):
    """What a Trainer of transformers gets in every stage: `lr_scale` in place of its own schedules, and its own seed.

    The order of the batches and dropout are drawn from global generators, so without it a run would depend on what ran
    before it in the same process. A loss or gradient that is not finite stops it before it reaches the weights, and a
    batch that does not fit into the memory of a GPU is an error that says what to set: transformers' own remedy
    (auto_find_batch_size) makes the steps smaller.
    """

    constant_rate = False  # after the warm-up, instead of falling
    batch = None  # what the last step was trained on

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            warmup, total = self.args.warmup_steps, None if self.constant_rate else num_training_steps
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda step: lr_scale(step, warmup, total))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, *args, **kwargs):
        return self._of_all_processes(super()._get_train_sampler(*args, **kwargs))

    def _get_eval_sampler(self, *args, **kwargs):
        return self._of_all_processes(super()._get_eval_sampler(*args, **kwargs))

    def _of_all_processes(self, sampler):
        """The sampler with the order that one process would take: several share each of its batches.

        transformers groups by length in batches of one process, and accelerate draws the order of several by a new
        generator.
        """
        if self.args.world_size > 1 and isinstance(sampler, LengthGroupedSampler):
            sampler.batch_size *= self.args.world_size
            sampler.generator = sampler.generator or torch.default_generator
        return sampler

    def prediction_step(self, *args, **kwargs):
        # Of several processes each has a part of the sum over a batch, and the last batch's parts differ in weight.
        loss, *others = super().prediction_step(*args, **kwargs)
        return self.accelerator.reduce(loss, "mean"), *others

    def train(self, *args, **kwargs):
        runtime.free_memory()  # of the trainings before this one in the same process
        # TRL's PPO has a seed for each process, by which it draws its answers.
        with runtime.isolated_generator(getattr(self, "local_seed", self.args.seed)):
            return super().train(*args, **kwargs)

    def training_step(self, model, inputs, *args, **kwargs):
        self.batch, size, steps = inputs, self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            of_all = 2 * steps * runtime.processes()
            smaller = f"batch_size = {size // 2} and gradient_accumulation = {of_all}, which take the same steps"
            raise torch.OutOfMemoryError(
                f"{self._where()}: a batch of {size} does not fit into the memory of the GPU; in rlhf/profiles.toml "
                f"set {smaller if size > 1 else 'a smaller max_length'} for this stage."
            ) from error
        self._require_finite({"loss": loss.item()})
        return loss

    def _get_grad_norm(self, *args, **kwargs):
        norm = super()._get_grad_norm(*args, **kwargs)
        self._require_finite({"gradient": float(norm)})
        return norm

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        measured = ("loss", "objective/")
        self._require_finite({name: value for name, value in logs.items() if any(part in name for part in measured)})
        super().log(logs, *args, **kwargs)

    def _where(self) -> str:
        return f"{Path(self.args.output_dir).name}, step {self.state.global_step + 1}"

    def _require_finite(self, numbers: dict[str, float]) -> None:
        tokenizer, ids = self.processing_class, (self.batch or {}).get("input_ids", ())
        start = getattr(getattr(self.model, "config", None), "_name_or_path", "")
        finite.require(
            f"{self._where()}, learning rate {self.args.learning_rate:g}",
            numbers,
            prompts=(tokenizer.decode(row, skip_special_tokens=True) for row in (ids if tokenizer else ())),
            kept=start and outputs.show_name(start),
            advice="Lower the learning rate in rlhf/profiles.toml, and look at the data.",
        )


def run_arguments(profile: Profile, run: str) -> dict:
    """Arguments of any TRL trainer: seed, device, TensorBoard files in outputs/logs/<profile>/<run>.

    output_dir is for the checkpoints of rlhf.resume; by its own rule transformers writes none.
    The trainer takes the folder of its TensorBoard files from the environment when it starts. Raises RuntimeError where
    one process sees several GPUs: the trainer would split each batch among them, after multiplying it.
    """
    if runtime.processes() == 1 and (seen := torch.cuda.device_count()) > 1:
        raise RuntimeError(
            f"{seen} GPUs are visible, and a batch would become as many; set CUDA_VISIBLE_DEVICES=0, or start one "
            f"process for each GPU (docs/scaling.md)."
        )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(outputs.logs_dir(profile) / run)
    return {
        "output_dir": str(outputs.training_dir(profile) / run),
        "report_to": ["tensorboard"],
        "save_strategy": "no",
        "logging_nan_inf_filter": False,  # it would count a loss that is NaN as the mean of the others, or as 0.0
        "disable_tqdm": False,  # set_up quiets the libraries, which would turn the table of losses into printed lines
        "use_cpu": runtime.device().type == "cpu",
        "seed": profile.seed,
    }


def shared_batch(size: int, accumulation: int) -> tuple[int, int]:
    """The batch of a process and its gradient accumulation, where batches of `size` are accumulated by one process.

    The product of both and the number of processes stays what it is, with as little accumulation as batches of `size`
    allow. Raises ValueError where the examples of a step can't be shared out equally.
    """
    share, rest = divmod(size * accumulation, runtime.processes())
    if rest:
        raise ValueError(
            f"{runtime.processes()} processes can't share the {size * accumulation} examples of a step equally; start "
            f"a number that divides it, or change batch_size or gradient_accumulation in rlhf/profiles.toml."
        )
    part = next(part for part in range(min(size, share), 0, -1) if share % part == 0)
    return part, share // part


def step_arguments(profile: Profile, run: str, settings, examples: float) -> dict:
    """Arguments of any trainer: those of run_arguments, steps, batches, warm-up, precision.

    settings: profile.sft or profile.reward. `examples` counts an example once for each time that it is seen.
    """
    steps = max(1, round(examples / settings.batch_size / settings.gradient_accumulation))
    steps = min(steps, profile.max_steps or steps)
    size, accumulation = shared_batch(settings.batch_size, settings.gradient_accumulation)
    return run_arguments(profile, run) | {
        "max_steps": steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": accumulation,
        "warmup_steps": min(settings.warmup_steps, steps // 5),
        "logging_steps": max(1, steps // 40),
        "bf16": runtime.bf16_is_native(),
    }


def fit_arguments(profile: Profile, run: str, settings, *, examples: float, evaluations: int) -> dict:
    """Arguments that SFTTrainer and RewardTrainer share: step_arguments, and `evaluations` of the validation loss.

    There may be 0 of these.
    """
    arguments = step_arguments(profile, run, settings, examples)
    return arguments | {
        "per_device_eval_batch_size": max(1, settings.batch_size // runtime.processes()),
        "max_length": None,  # longer texts were left out by name, so nothing is cut here
        "eval_strategy": "steps" if evaluations else "no",
        "eval_steps": -(-arguments["max_steps"] // max(1, evaluations)),
        "activation_checkpointing": False,
    }


def train_in_float32(model: torch.nn.Module) -> None:
    """Keep what is trained in float32; TRL 1.12 and transformers store the adapter of a 4-bit model in bfloat16.

    A bfloat16 weight has 8 bits of precision, so most steps of a small learning rate would be rounded away, and a CPU
    without bfloat16 takes five times as long for the products. Autocast lowers those where it pays.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def logged(trainer, *measures: str) -> pd.DataFrame:
    """What a trainer logged over its steps, such as "loss": columns split (train or validation), step, the measures."""
    rows = []
    for entry in trainer.state.log_history:
        for split, prefix in (("train", ""), ("validation", "eval_")):
            if f"{prefix}loss" in entry:
                rows.append((split, entry["step"], *(entry[prefix + measure] for measure in measures)))
    return pd.DataFrame(rows, columns=["split", "step", *measures])


def lora_config(lora: LoraSettings, task_type: str, model: torch.nn.Module, **options) -> LoraConfig:
    """PEFT's configuration of an adapter on `model`; `options` are further settings of it.

    The layers that the settings name are GPT-2's own. Any other architecture gets an adapter on all linear layers.
    """
    targets = lora.targets if model.config.model_type == "gpt2" else "all-linear"
    targets = targets if isinstance(targets, str) else list(targets)
    options |= {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout}
    return LoraConfig(target_modules=targets, task_type=task_type, **options)
