"""Frozen lower layers that policy, reference and value model have in common: run once for a rollout, and kept.

Where most layers are frozen, what they make of an answer is the same for every model and in every pass over a batch. So
it is computed once, and log-probabilities, values and gradients run the upper layers alone. One trunk for policy and
reference is trlX's "hydra" (Havrilla et al. 2023); keeping its output for the whole update goes one step further.
"""

import copy
import math
from collections.abc import Sequence

from rlhf.generation import trunk_of

import torch
from transformers import PreTrainedModel

LARGEST_GAP = 1e-3  # between states, as a share of the largest


def freeze_lower(model: PreTrainedModel, share: float) -> None:
    """Freeze all weights of a model but those of its upper layers: `share` of them, rounded up. 1 freezes nothing.

    Reference and value model come to share the frozen ones when they are made by adapters.sharing_copy. Raises
    ValueError for a share that is not above 0 and at most 1, and for a model whose layers don't stand in its trunk.
    """
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share} of the layers can't be trained; give more than 0, and at most 1.")
    if share == 1:
        return
    layers = _Stack(trunk_of(model)).layers
    if not layers:
        raise ValueError(f"{type(model).__name__} does not have its layers right in its trunk; set trained_share to 1.")
    upper = {id(weight) for weight in layers[-math.ceil(share * len(layers) - 1e-9) :].parameters()}
    for weight in model.parameters():
        if id(weight) not in upper:
            weight.requires_grad_(False)


class _Stack:
    """The layers of a trunk, and what stands before them, in the order of its modules."""

    def __init__(self, trunk: torch.nn.Module):
        lists = [(name, part) for name, part in trunk.named_children() if isinstance(part, torch.nn.ModuleList)]
        self.name, self.layers = max(lists, key=lambda named: len(named[1]), default=("", torch.nn.ModuleList()))
        names = [name for name, _ in trunk.named_children()]
        self.before = {name: getattr(trunk, name) for name in names[: names.index(self.name)]} if self.name else {}


def count_shared(models: Sequence[PreTrainedModel]) -> int:
    """How many of the first layers, and all before them, are frozen and the same tensors in all of the models."""
    stacks = [_Stack(trunk_of(model)) for model in models]
    parts = [[torch.nn.ModuleList(stack.before.values()), *stack.layers] for stack in stacks]
    count = 0
    for modules in zip(*parts, strict=False):
        weights = [list(module.parameters()) for module in modules]
        if len({tuple(weight.data_ptr() for weight in own) for own in weights}) > 1:
            break
        if any(weight.requires_grad for own in weights for weight in own):
            break
        count += 1
    return max(0, count - 1)


class _Keep(torch.nn.Module):
    """Stands in the place of a layer, and keeps what reaches it."""

    def forward(self, states: torch.Tensor, *_, **__) -> torch.Tensor:
        self.states = states
        return states


class _Zero(torch.nn.Module):
    """Stands in the place of an embedding whose share is in the states already."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*ids.shape, 1, device=ids.device)


def _with_layers(trunk: torch.nn.Module, layers: Sequence[torch.nn.Module], first: int) -> torch.nn.Module:
    """A view of a trunk that has other layers, the same weights, and the settings of its layers from `first` on."""
    view, stack = copy.copy(trunk), _Stack(trunk)
    view._modules = trunk._modules | {stack.name: torch.nn.ModuleList(layers)}
    view.config = copy.copy(trunk.config)
    view.config.num_hidden_layers = len(layers)
    if kinds := getattr(trunk.config, "layer_types", None):
        view.config.layer_types = (list(kinds)[first:] + list(kinds))[: len(layers)]
    return view


class SharedLayers:
    """The trunk of a model in two halves: `lower`, run once for tokens, and `upper`, run on what it gave."""

    def __init__(self, model: PreTrainedModel, count: int):
        self.count, layers = count, _Stack(trunk_of(model)).layers
        self.kept = _Keep()
        self.bottom = _with_layers(trunk_of(model), [*layers[:count], self.kept], 0)

    @torch.no_grad()
    def lower(self, **inputs) -> torch.Tensor:
        """What reaches the first trained layer: (rows, tokens, width). inputs: as for the trunk."""
        self.bottom(**inputs, use_cache=False)
        return self.kept.states

    def upper(self, model: PreTrainedModel) -> torch.nn.Module:
        """The rest of a model's trunk: it takes `lower`'s states as inputs_embeds."""
        trunk = trunk_of(model)
        stack, embedding = _Stack(trunk), model.get_input_embeddings()
        view = _with_layers(trunk, stack.layers[self.count :], self.count)
        for name, part in stack.before.items():
            if isinstance(part, torch.nn.Embedding) and part is not embedding:  # learned positions, as GPT-2 has them
                view._modules[name] = _Zero()
        return view


@torch.no_grad()
def shared_by(models: Sequence[PreTrainedModel], tokens: int = 8) -> SharedLayers | None:
    """The lower layers that all of the models share, or None where there are none.

    They are tried on a few tokens: an architecture that does more to what comes from its embedding than to add
    positions, such as Granite, is run whole, and said so.
    """
    count = count_shared(models)
    if not count:
        return None
    shared = SharedLayers(models[0], count)
    ids = torch.arange(tokens, device=models[0].device)[None] % models[0].config.vocab_size
    states = shared.lower(input_ids=ids)
    for model in models:
        whole = trunk_of(model)(input_ids=ids).last_hidden_state
        halves = shared.upper(model)(inputs_embeds=states, use_cache=False).last_hidden_state
        if not (whole - halves).abs().max() <= LARGEST_GAP * whole.abs().max():
            print(f"The frozen layers of {type(model).__name__} can't be run apart from the others; nothing is shared.")
            return None
    return shared
