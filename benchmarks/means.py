"""The means to speed that were tried, one at a time: what was expected, what was measured, whether it is kept.

Each is a stage or a part of one with it and without it, all else equal. A ratio above 1 says that it is faster with it.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rlhf import runtime, sft
from rlhf.adapters import sharing_copy
from rlhf.generation import encode_prompts, head_logits, left_padded, right_padded, trunk_of
from rlhf.ppo.algorithm import token_logprobs
from rlhf.ppo.shared_layers import freeze_lower
from rlhf.reward import scoring
from rlhf.reward import training as reward_training
from rlhf.reward.pairs import training_pairs
from rlhf.template import format_prompt

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from measure import alternate, ratios
from ways import common, ppo_trainer_of, run_of
from workload import Workload, on_gpu

TRAINED_SHARE = 1 / 3  # of the layers, as the profile `larger` has it


class Mean(NamedTuple):
    expected: str
    kept: str
    with_it: Callable[[], Callable]  # builds what is run
    without: Callable[[], Callable]


@torch.no_grad()
def _read(model, rows: list[list[int]], pad: int, width: int = 0) -> None:
    """Score the rows in batches of 32 in their order, padded to the longest or to `width`."""
    for start in range(0, len(rows), 32):
        batch = [row + [pad] * (width - len(row)) for row in rows[start : start + 32]]
        ids, mask = (tensor.to(model.device) for tensor in right_padded(batch, pad))
        model(input_ids=ids, attention_mask=mask * (ids != pad))


def _of_scoring(load: Workload) -> dict[str, Mean]:
    model, pad = load.classifier(), load.tokenizer.pad_token_id
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    ended = [True] * len(load.pairs)
    rows = scoring.encode(load.tokenizer, list(load.pairs["prompt"]), list(load.pairs["chosen"]), ended)
    plain = partial(_read, model, rows, pad)
    found = {
        "padding to the batch": Mean(
            "scoring as many times faster as the context is longer than a text",
            "yes",
            lambda: plain,
            lambda: partial(plain, width=load.shape.context),
        ),
        "sorted evaluation batches": Mean(
            "a third less padding where lengths spread as in the published data",
            "yes",
            lambda: partial(_read, model, sorted(rows, key=len), pad),
            lambda: plain,
        ),
        "fused GELU": Mean(
            "a tenth of a pass: eight steps over the widest layer become one, with the same values",
            "yes",
            lambda: plain,
            lambda: partial(_read, load.classifier(published=True), rows, pad),
        ),
        "fused attention": Mean(
            "little at these lengths, where attention is a small part of the products",
            "yes; the lab's short texts are faster without on a CPU",
            lambda: plain,
            lambda: partial(_read, eager, rows, pad),
        ),
    }
    if on_gpu():

        def in_precision(name: str) -> Callable:
            torch.set_float32_matmul_precision(name)
            return plain

        expected = "float32 products several times faster, with 10 bits of precision"
        found["TF32"] = Mean(
            expected, "no: scores are exact", lambda: in_precision("high"), lambda: in_precision("highest")
        )
    return found


def _of_training(load: Workload) -> dict[str, Mean]:
    tokenizer, profile = load.tokenizer, load.profile
    prompts, ended = list(load.pairs["prompt"]), [True] * len(load.pairs)
    sides = ("chosen", "rejected")
    pairs = {f"{side}_ids": scoring.encode(tokenizer, prompts, list(load.pairs[side]), ended) for side in sides}
    pairs = Dataset.from_dict(pairs)
    examples = {"prompt": [format_prompt(prompt) for prompt in prompts], "completion": list(load.pairs["chosen"])}
    rows = sft.tokenize(examples, tokenizer)

    def reward(train: Dataset) -> Callable:
        return run_of(reward_training.make_trainer(profile, load.classifier(), tokenizer, train, pairs))

    ours = {"learning_rate": profile.sft.full_learning_rates[0], "epochs": 1}

    def tune(**options) -> Callable:
        config = {**common(load, profile.sft), "max_length": None, "gradient_checkpointing": False, **options}
        data = {"train_dataset": rows, "processing_class": tokenizer}
        return run_of(SFTTrainer(model=load.policy(), args=SFTConfig(**config), **data))

    return {
        "batches grouped by length": Mean(
            "reward training as much faster as there was padding in random batches",
            "yes",
            lambda: reward(training_pairs(profile, tokenizer, pairs)),
            lambda: reward(pairs),
        ),
        "chunked loss": Mean(
            "less memory; a little faster, since prompt and padding get no logits",
            "no: it computes the logits twice, and their entropy",
            lambda: tune(loss_type="chunked_nll"),
            lambda: tune(loss_type="nll"),
        ),
        "logits from the first label on": Mean(
            "a quarter faster than TRL's chunks at the same loss",
            "yes",
            lambda: run_of(sft.make_trainer(profile, "means", load.policy(), tokenizer, rows, None, **ours)),
            tune,
        ),
        "bfloat16": Mean(
            "fine-tuning twice as fast on a CPU that has it, more on a GPU",
            "where the hardware has it" + ("" if runtime.bf16_is_native() else "; this machine emulates it"),
            lambda: tune(bf16=True),
            lambda: tune(bf16=False),
        ),
        "no recomputed activations": Mean(
            "a quarter faster for more memory: TRL's default runs each forward pass twice",
            "yes",
            lambda: tune(),
            lambda: tune(gradient_checkpointing=True),
        ),
    }


def _of_ppo(load: Workload) -> dict[str, Mean]:
    tokenizer, pad = load.tokenizer, load.tokenizer.pad_token_id
    prompts = encode_prompts(tokenizer, list(load.pairs["prompt"]))[:8]
    rng = np.random.default_rng(0)
    answers = rng.integers(pad, size=(len(prompts), load.shape.beam_tokens))
    ids, mask = left_padded([[*prompt, *answer] for prompt, answer in zip(prompts, answers.tolist(), strict=True)], pad)
    ids, mask = ids.to(runtime.device()), mask.to(runtime.device())
    policy, answered = load.policy(), answers.shape[1]

    def logprobs(first: int) -> None:
        """Forward and backward of the log-probabilities from the column `first` on."""
        states = trunk_of(policy)(input_ids=ids, attention_mask=mask).last_hidden_state[:, first:-1].flatten(0, 1)
        found = token_logprobs(head_logits(policy, states), ids[:, first + 1 :].flatten())
        found.view(len(ids), -1)[:, -answered:].sum().backward()
        policy.zero_grad(set_to_none=True)

    def with_reference_in_each_pass() -> Callable:
        trainer = ppo_trainer_of(load)
        optimise = trainer.optimise

        def slower(rollout, *others):
            for _ in range(trainer.settings.epochs - 1):
                trainer.compute_ref_logprobs(rollout)
            return optimise(rollout, *others)

        trainer.optimise = slower
        return trainer.step

    def with_frozen_layers(copied: Callable) -> Callable:
        policy = load.policy()
        freeze_lower(policy, TRAINED_SHARE)
        return ppo_trainer_of(load, policy, copied(policy)).step

    return {
        "logits of the completion alone": Mean(
            "as much faster as the prompt is of the text, for the head's part of the products",
            "yes",
            lambda: partial(logprobs, ids.shape[1] - answered - 1),
            lambda: partial(logprobs, 0),
        ),
        "cached reference log-probabilities": Mean(
            "three forward passes of an update are saved, a tenth of its time",
            "yes",
            lambda: ppo_trainer_of(load).step,
            with_reference_in_each_pass,
        ),
        "shared frozen trunk": Mean(
            "with two thirds of the layers frozen, twice as fast: they run once for a rollout",
            "where lower layers are frozen",
            lambda: with_frozen_layers(sharing_copy),
            lambda: with_frozen_layers(copy.deepcopy),
        ),
    }


def _of_generation(load: Workload) -> dict[str, Mean]:
    """Only on CUDA: elsewhere transformers does not compile, and a static cache alone computes more."""
    if not on_gpu():
        return {}
    model, pad, count = load.policy(), load.tokenizer.pad_token_id, load.shape.beam_tokens
    prompts = encode_prompts(load.tokenizer, list(load.pairs["prompt"]))[:64]
    ids, mask = (tensor.to(model.device) for tensor in left_padded(prompts, pad))
    options = {"attention_mask": mask, "max_new_tokens": count, "do_sample": False, "pad_token_id": pad}

    def answer(**more) -> Callable:
        return partial(model.generate, input_ids=ids, **options, **more)

    expected = "greedy answers several times faster: the launch of kernels is what takes the time"
    compiled = partial(answer, cache_implementation="static")
    return {"static cache and compilation": Mean(expected, "no: it compiles anew for each width", compiled, answer)}


def table(load: Workload, pairs: int) -> pd.DataFrame:
    """A row for each mean: what was expected, the ratio of its seconds without to with, memory, whether it is kept."""
    rows = []
    for parts in (_of_scoring, _of_training, _of_ppo, _of_generation):
        for name, mean in parts(load).items():
            turns = alternate({"with": mean.with_it, "without": mean.without}, pairs)
            row = {"mean": name, "expected": mean.expected, **ratios(turns["without"], turns["with"])}
            row |= {f"memory_{way}_mb": max(turn.memory_mb for turn in its) for way, its in turns.items()}
            rows.append(row | {"kept": mean.kept, "pairs": pairs})
            print(f"{name}: {row['ratio']:.2f}x [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]; kept: {mean.kept}")
    return pd.DataFrame(rows)
