"""Direct preference optimisation: the losses of DPO and IPO, and TRL's DPOTrainer on pairs of answers as tokens."""

from collections.abc import Sequence

from rlhf import runtime
from rlhf.generation import Answer, answer_logprobs, encode_prompts
from rlhf.profiles import Profile
from rlhf.training import StageTrainer, step_arguments, train_in_float32

import numpy as np
import torch
from datasets import Dataset
from trl import DPOConfig, DPOTrainer


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta: float) -> torch.Tensor:
    """-log sigmoid(beta * margin), margin = (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected): (pairs,).

    The first four: (pairs,), log-probabilities of whole answers in nats. The loss is that of a reward model whose
    reward is beta * (log pi - log pi_ref). Source: Rafailov et al. 2023, equation 7.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return -torch.nn.functional.logsigmoid(beta * margin)


def ipo_loss(chosen, rejected, ref_chosen, ref_rejected, beta: float) -> torch.Tensor:
    """(margin - 1 / (2 beta))^2, with the margin of dpo_loss: (pairs,). It has an aim, where dpo_loss always asks more.

    The first four: (pairs,), log-probabilities of whole answers, each divided by the answer's number of tokens, as TRL
    does: a sum over tokens would hold long answers to a nearer aim. Source: Azar et al. 2024, equation 17.
    """
    margin = (chosen - ref_chosen) - (rejected - ref_rejected)
    return (margin - 1 / (2 * beta)) ** 2


REFERENCE = {"ref_chosen_logps": "chosen_ids", "ref_rejected_logps": "rejected_ids"}  # TRL's names, and of what
LOSSES = {"dpo": "sigmoid", "ipo": "ipo"}  # TRL's names


def pair_rows(tokenizer, prompts, chosen: Sequence[Sequence[int]], rejected: Sequence[Sequence[int]]) -> Dataset:
    """Columns prompt_ids (in the template), chosen_ids, rejected_ids: tokens of answers, with EOS where they ended."""
    columns = {"chosen_ids": list(map(list, chosen)), "rejected_ids": list(map(list, rejected))}
    return Dataset.from_dict({"prompt_ids": encode_prompts(tokenizer, prompts)} | columns)


def with_reference(ref, tokenizer, rows: Dataset, batch_size: int) -> Dataset:
    """`pair_rows` with the log-probabilities of the answers under `ref`, in nats, for trainings that share them."""
    encoded = rows["prompt_ids"]
    for name, side in REFERENCE.items():
        answers = [Answer("", tuple(ids), True) for ids in rows[side]]
        found = answer_logprobs(ref, tokenizer, [""] * len(rows), answers, batch_size=batch_size, encoded=encoded)
        rows = rows.add_column(name, found.astype(np.float32))
    return rows


class _DPOTrainer(StageTrainer, DPOTrainer):
    """TRL's trainer on rows that are tokens already.

    It would make them of texts, where what looks like a special token becomes one, and add an EOS to every answer, so
    also to one that was cut off.
    """

    resumes = False  # the comparison of methods resumes between its trainings

    def _prepare_dataset(self, dataset, *_):
        return dataset

    def _precompute_ref_logps(self, dataset, *arguments):
        there = REFERENCE.keys() <= set(dataset.column_names)
        return dataset if there else super()._precompute_ref_logps(dataset, *arguments)


def make_trainer(
    profile: Profile, run: str, policy, ref, tokenizer, rows: Dataset, *,
    loss: str, beta: float, learning_rate: float, epochs: float = 1,
) -> DPOTrainer:  # fmt: skip
    """A trainer on `pair_rows` in their order, by one of LOSSES; TensorBoard files go to outputs/logs/<profile>/<run>.

    Batches and warm-up are those of profile.reward, whose examples are pairs too. Policy and reference run without
    dropout. The reference's log-probabilities are computed before training, unless `with_reference` has put them in.
    """
    arguments = step_arguments(profile, run, profile.reward, examples=epochs * len(rows))
    config = DPOConfig(
        **arguments | {"bf16": False},  # under autocast the head's logits are rounded by more than a margin changes
        learning_rate=learning_rate,
        loss_type=LOSSES[loss],
        beta=beta,
        max_length=None,  # longer pairs were left out by name, so nothing is cut here
        precompute_ref_log_probs=True,
        train_sampling_strategy="sequential",
        activation_checkpointing=False,
    )
    with runtime.isolated_generator(profile.seed):
        trainer = _DPOTrainer(model=policy, ref_model=ref, args=config, train_dataset=rows, processing_class=tokenizer)
    train_in_float32(trainer.model)
    return trainer
