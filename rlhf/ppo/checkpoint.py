"""Saving and resuming a run of PPOTrainer: resumed on a CPU, a run goes on bit by bit as if it had not stopped."""

import dataclasses
import json
import os
from pathlib import Path

from rlhf import finite, outputs, resume
from rlhf.resume import STATE

# A resumed run may go on longer, keep other checkpoints and cut its passes otherwise; all else must be as it was.
MAY_CHANGE = {"updates", "checkpoint_every", "micro_batch_size"}


def _identity(trainer) -> dict:
    """What a checkpoint belongs to: the settings that must not change, and the prompts."""
    settings = dataclasses.asdict(trainer.settings)
    return {k: v for k, v in settings.items() if k not in MAY_CHANGE} | {
        "number of prompts": len(trainer.prompts),
        "prompts": resume.digest(json.dumps([trainer.prompts, trainer.encoded])),
        "value model": trainer.value_model is not None,
        "start weights": trainer.start_weights,
        "rewards": trainer.probed_rewards,
    }


def save(trainer) -> Path:
    """Write checkpoints/update_<n> of a trainer. Raises ValueError where it has no folder for checkpoints."""
    if trainer.checkpoints is None:
        raise ValueError("no folder for checkpoints was given; pass checkpoints=... to PPOTrainer.")
    path = Path(trainer.checkpoints) / f"update_{trainer.update:05d}"
    state = {
        "of": _identity(trainer),
        "update": trainer.update,
        "position": trainer.position,
        "too_far": trainer.too_far,
        "kl_coef": trainer.kl_coef,
        "rows": trainer.rows,
        "ended": trainer.has_ended,
        "process": os.getpid(),
    }
    policy = resume.trained(trainer.policy)
    values = {name: tensor.contiguous() for name, tensor in trainer.value_module.state_dict().items()}
    finite.require(f"checkpoint of update {trainer.update}", policy | values, kept=trainer.last_checkpoint or "none")
    random = {"generator": trainer.generator.get_state(), "order": trainer.order}
    moments = resume.optimizer_tensors(trainer.optimizer)
    resume.write(path, {STATE: state}, policy=policy, value=values, optimizer=moments, random=random)
    trainer.last_checkpoint = path
    return path


def take_up(trainer) -> None:
    """Go on from the newest checkpoint of the trainer's folder; a line says so, or why it starts over."""
    if path := resume.newest(Path(trainer.checkpoints)):
        try:
            restore(trainer, path, not_own_end=True)
        except (OSError, ValueError) as error:
            print(f"PPO starts over: {error}")
    if trainer.update:
        print(f"PPO goes on after update {trainer.update} of {trainer.settings.updates}, from {outputs.show(path)}")


def restore(trainer, path: Path, not_own_end: bool = False) -> None:
    """Put a trainer where `save` left one. The trainer is not changed if the checkpoint is refused.

    Raises FileNotFoundError where the folder is no checkpoint, and ValueError where a file is cut off or missing, and,
    naming each, where seed, settings or prompts are others than those of the checkpoint.
    """
    path = Path(path)
    if not (path / STATE).exists():
        raise FileNotFoundError(f"{path} is no checkpoint of PPOTrainer: it has no {STATE}.")
    try:
        state, tensors = resume.read(path)
    except ValueError as error:
        raise ValueError(f"{error}; resume from an earlier one.") from error
    before, now = state["of"], json.loads(json.dumps(_identity(trainer)))
    if changed := resume.changed(before, now):
        listed = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} here" for name in changed)
        raise ValueError(
            f"{outputs.show(path)} is of another run ({listed}); set these back to resume it, or start anew."
        )
    if not_own_end and resume.is_own_end(state):
        return
    resume.put(trainer.policy, tensors["policy"])
    trainer.value_module.load_state_dict(tensors["value"])
    resume.load_optimizer_tensors(trainer.optimizer, tensors["optimizer"])
    trainer.generator.set_state(tensors["random"]["generator"])
    trainer.order, trainer.position = tensors["random"]["order"], state["position"]
    trainer.update, trainer.too_far, trainer.rows = state["update"], state["too_far"], state["rows"]
    trainer.kl_coef, trainer.last_checkpoint = state["kl_coef"], path
