"""Saving and resuming a run of PPOTrainer: resumed on a CPU, a run goes on bit by bit as if it had not stopped."""

import dataclasses
import hashlib
import json
from pathlib import Path

from rlhf import finite, outputs
from rlhf.training import load_optimizer_tensors, optimizer_tensors

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

# A resumed run may go on longer, keep other checkpoints and cut its passes otherwise; all else must be as it was.
MAY_CHANGE = {"updates", "checkpoint_every", "micro_batch_size"}


def _identity(trainer) -> dict:
    """What a checkpoint belongs to: the settings that must not change, and the prompts."""
    settings = dataclasses.asdict(trainer.settings)
    prompts = hashlib.sha256(json.dumps([trainer.prompts, trainer.encoded]).encode()).hexdigest()
    return {k: v for k, v in settings.items() if k not in MAY_CHANGE} | {
        "number of prompts": len(trainer.prompts),
        "prompts": prompts[:16],
        "value model": trainer.value_model is not None,
    }


def _trained(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a model that learn, by name: all, some layers, or adapters."""
    return {name: weight.data for name, weight in model.named_parameters() if weight.requires_grad}


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
    }
    policy = _trained(trainer.policy)
    values = {name: tensor.contiguous() for name, tensor in trainer.value_module.state_dict().items()}
    finite.require(f"checkpoint of update {trainer.update}", policy | values, kept=trainer.last_checkpoint or "none")
    with outputs.new_folder(path) as folder:
        save_file(policy, folder / "policy.safetensors")
        save_file(values, folder / "value.safetensors")
        save_file(optimizer_tensors(trainer.optimizer), folder / "optimizer.safetensors")
        save_file({"generator": trainer.generator.get_state(), "order": trainer.order}, folder / "random.safetensors")
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
    trainer.last_checkpoint = path
    return path


def resume(trainer, path: Path) -> None:
    """Put a trainer where `save` left one. The trainer is not changed if the checkpoint is refused.

    Raises FileNotFoundError where the folder is no checkpoint, and ValueError where a file is cut off or missing, and,
    naming each, where seed, settings or prompts are others than those of the checkpoint.
    """
    path = Path(path)
    if not (path / "state.json").exists():
        raise FileNotFoundError(f"{path} is no checkpoint of PPOTrainer: it has no state.json.")
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        parts = ("policy", "value", "optimizer", "random")
        trained, values, moments, randomness = (load_file(path / f"{part}.safetensors") for part in parts)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path} can't be read ({error}): it may be cut off; resume from an earlier one.") from error
    before, now = state["of"], json.loads(json.dumps(_identity(trainer)))
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    if changed:
        listed = "; ".join(f"{name}: {before.get(name)!r} there, {now.get(name)!r} here" for name in changed)
        raise ValueError(f"{path} is of another run ({listed}); set these back to resume it, or start anew.")
    with torch.no_grad():
        for name, weight in _trained(trainer.policy).items():
            weight.copy_(trained[name])
    trainer.value_module.load_state_dict(values)
    load_optimizer_tensors(trainer.optimizer, moments)
    trainer.generator.set_state(randomness["generator"])
    trainer.order, trainer.position = randomness["order"], state["position"]
    trainer.update, trainer.too_far, trainer.rows = state["update"], state["too_far"], state["rows"]
    trainer.kl_coef, trainer.last_checkpoint = state["kl_coef"], path
