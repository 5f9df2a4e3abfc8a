"""Adapters on one frozen base, for a model that is too large to be trained whole.

Policy, reference, reward model and value model are models of their own, each with its adapter, but the frozen weights
in them are the same tensors: four of a 7B take the memory of one. Nothing is switched, so each can be used and trained
as if it were alone.
"""

import copy
from pathlib import Path

from rlhf import runtime
from rlhf.training import train_in_float32

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel

HEAD = "score"
WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."  # PEFT's file, and how the names in it begin


def sharing_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model whose frozen weights are those of the model itself: it costs the memory of the others."""
    shared = [weight for weight in model.parameters() if not weight.requires_grad] + list(model.buffers())
    shared += [weight.quant_state for weight in shared if getattr(weight, "quant_state", None)]  # of 4-bit weights
    return copy.deepcopy(model, {id(part): part for part in shared})


def with_adapter(base: PreTrainedModel, path: Path) -> PreTrainedModel:
    """A language model that shares the weights of `base`, and the adapter of a checkpoint, which can be trained.

    Its save_pretrained saves the adapter alone.
    """
    model, config = sharing_copy(base), PeftConfig.from_pretrained(path)
    config.inference_mode = False
    with runtime.isolated_generator(0):  # weights are drawn before those of the adapter are loaded
        model.add_adapter(config)
    train_in_float32(model)
    tensors = load_file(path / WEIGHTS, device=str(base.device))
    set_peft_model_state_dict(model, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()})
    return model.eval()


def new_classifier(base: PreTrainedModel, kind: type, adapter: Path, seed: int) -> PeftModel:
    """A model with a scalar head, drawn by `seed`, and the adapter of a policy, which both go on to be trained.

    kind: the class for sequence classification of the base's architecture.
    """
    with runtime.isolated_generator(seed):
        model, of_policy = _headed(base, kind), PeftConfig.from_pretrained(adapter)
        settings = {name: getattr(of_policy, name) for name in ("r", "lora_alpha", "lora_dropout", "target_modules")}
        wrapped = get_peft_model(model, LoraConfig(**settings, task_type="SEQ_CLS", modules_to_save=[HEAD]))
    tensors = load_file(adapter / WEIGHTS, device=str(base.device))
    head = {f"{PREFIX}{HEAD}.weight": getattr(wrapped.base_model.model, HEAD).weight.detach()}
    set_peft_model_state_dict(wrapped, tensors | head)
    return wrapped.eval()


def load_classifier(base: PreTrainedModel, kind: type, path: Path) -> PreTrainedModel:
    """A trained one from its checkpoint: adapter and head, which can be trained further."""
    with runtime.isolated_generator(0):
        wrapped = PeftModel.from_pretrained(_headed(base, kind), path, is_trainable=True)
    model = wrapped.get_base_model()
    setattr(model, HEAD, getattr(model, HEAD).modules_to_save["default"])
    return model.eval()


def _headed(base: PreTrainedModel, kind: type) -> PreTrainedModel:
    """The trunk of `base` with a new scalar head."""
    config = copy.deepcopy(base.config)
    config.num_labels = 1
    with torch.device("meta"):  # a trunk of its own is not made
        model = kind(config)
    trunk = base.base_model_prefix
    setattr(model, trunk, getattr(sharing_copy(base), trunk))
    width = getattr(model, HEAD).in_features
    head = torch.nn.Linear(width, 1, bias=False, device=base.device)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    setattr(model, HEAD, head)
    return model.eval()
