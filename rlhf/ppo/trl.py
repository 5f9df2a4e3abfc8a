"""PPO by TRL 1.12.0, the last release that has it, with the project's settings and what its loop leaves out."""

import os
from pathlib import Path

from rlhf import outputs, runtime
from rlhf.generation import refuse_nan
from rlhf.ppo import monitor
from rlhf.ppo.settings import Settings
from rlhf.profiles import Profile
from rlhf.training import StageTrainer, run_arguments, shared_batch

import pandas as pd
import torch
from accelerate.utils import gather_object
from trl.experimental.ppo import PPOConfig, PPOTrainer


class RecordingPPOTrainer(StageTrainer, PPOTrainer):
    """TRL's trainer, which also records length (tokens), share of ended answers and variety of each rollout.

    Its learning rate rises and stays as in the project's own trainer; with TRL's schedule the first update has rate 0.
    """

    constant_rate = True
    resumes = False  # TRL's loop begins at the first update, and its checkpoints leave the value model out

    def train(self) -> None:
        begun = Path(self.args.output_dir) / "begun"
        if begun.exists() and begun.read_text(encoding="utf-8") != str(os.getpid()):
            print(f"{begun.parent.name} starts over: TRL's PPO can't go on from a checkpoint.")
        if self.args.process_index == 0:
            outputs.write_text(begun, str(os.getpid()))
        self.rollouts: list[dict[str, float]] = []
        self.policy_model.generate = self._recording(self.policy_model.generate)
        try:
            super().train()
        except torch.OutOfMemoryError as error:
            size = self.args.per_device_train_batch_size
            raise torch.OutOfMemoryError(
                f"{self._where()}: {size} answers do not fit into the memory of the GPU; in ppo_config.py set "
                f"micro_batch_size={max(1, size // 2)}, and mini_batches=1, as TRL 1.12 accumulates over one alone."
            ) from error
        finally:
            del self.policy_model.generate  # the method of the class shows again

    def _recording(self, generate):
        def recording_generate(*args, input_ids, **kwargs):
            generated = generate(*args, input_ids=input_ids, logits_processor=[refuse_nan], **kwargs)
            answers = generated.sequences[:, input_ids.shape[1] :]
            ended = (answers == self.processing_class.eos_token_id).any(dim=1).float().mean().item()
            written = answers != self.processing_class.pad_token_id
            lengths = written.sum(dim=1).float().mean().item()
            row = {"response_length": lengths, "stop_rate": ended}
            self.rollouts.append(row | monitor.variety(answers, written))
            return generated

        return recording_generate


def make_trainer(
    profile: Profile, settings: Settings, policy, reference, reward_model, value_model, tokenizer, prompts
) -> RecordingPPOTrainer:
    """TRL's PPOTrainer with the project's settings; it records what it generates in `trainer.rollouts`.

    Raises ValueError for fewer prompts than a batch, with which TRL's loop would never end, for models that are the
    same object, with which the reward would drift with the value function, for a policy or value model with frozen
    weights and no adapter, and for a launcher that splits weights by FSDP: TRL calls parts of the model on their own.
    """
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise ValueError("TRL 1.12's PPO can't train with FSDP; take accelerate_configs/ddp.yaml or zero2.yaml.")
    if len(prompts) < settings.batch_size:
        raise ValueError(
            f"{len(prompts)} prompts are fewer than a batch of {settings.batch_size}; give more data or lower "
            f"batch_size in 03_ppo_alignment/ppo_config.py."
        )
    if len({id(model) for model in (policy, reference, reward_model, value_model)}) < 4:
        raise ValueError("policy, reference, reward model and value model must be four separate models.")
    for name, model in (("policy", policy), ("value model", value_model)):
        frozen = sum(not parameter.requires_grad for parameter in model.parameters())
        if frozen and not any("lora_" in name for name, _ in model.named_parameters()):
            raise ValueError(
                f"{frozen} weights of the {name} are frozen and would not learn; call requires_grad_(True)."
            )
    size, accumulation = shared_batch(settings.micro_batch_size, settings.batch_size // settings.micro_batch_size)
    tokenizer.padding_side = "left"  # a decoder continues from the last position, which must be the prompt's
    config = PPOConfig(
        **run_arguments(profile, "ppo_trl"),
        total_episodes=settings.updates * settings.batch_size,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        num_mini_batches=settings.mini_batches,
        num_ppo_epochs=settings.epochs,
        local_rollout_forward_batch_size=size,
        response_length=settings.max_new_tokens,
        temperature=settings.temperature,
        stop_token="eos",
        missing_eos_penalty=settings.missing_eos_penalty,
        learning_rate=settings.learning_rate,
        adam_epsilon=settings.adam_epsilon,
        warmup_steps=settings.warmup_updates,
        kl_coef=settings.kl_coef,
        cliprange=settings.cliprange,
        cliprange_value=settings.cliprange_value,
        vf_coef=settings.vf_coef,
        gamma=settings.gamma,
        lam=settings.lam,
        num_sample_generations=0,
        bf16=False,  # TRL 1.12 ignores it on transformers 5
    )
    with runtime.isolated_generator(settings.seed):  # TRL seeds torch's global generator
        return RecordingPPOTrainer(
            args=config,
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward_model,
            value_model=value_model,
            train_dataset=prompts,
        )


def training_curve(trainer: RecordingPPOTrainer) -> pd.DataFrame:
    """One row per update: episode, reward, kl, entropy, losses, clip fraction, answer length, stop rate, variety.

    kl is in nats per answer, entropy in nats per token, explained_variance NaN: TRL does not log it. The entropy is the
    mean surprise of the sampled tokens: TRL's own average (policy/entropy_avg) counts padding as if it were answer.
    Of several processes all must call it: the answers of each are in the means.
    """
    names = {
        "episode": "episode",
        "objective/scores": "reward",
        "objective/kl": "kl",
        "objective/rlhf_reward": "reward_minus_kl",
        "loss/policy_avg": "policy_loss",
        "loss/value_avg": "value_loss",
        "policy/clipfrac_avg": "clip_fraction",
        "policy/approxkl_avg": "approx_kl",
        "lr": "learning_rate",
    }
    logged = [entry for entry in trainer.state.log_history if "objective/kl" in entry]
    curve = pd.DataFrame([{name: entry[key] for key, name in names.items()} for entry in logged])
    of_update = len(trainer.rollouts) // len(curve)  # as many of equal size for each
    rows = gather_object([row | {"update": i // of_update} for i, row in enumerate(trainer.rollouts)])
    rollouts = pd.DataFrame(rows).groupby("update").mean()
    curve["entropy"] = [entry["objective/entropy"] for entry in logged] / rollouts.response_length
    return curve.join(rollouts).assign(explained_variance=float("nan"))
