"""The settings of a PPO run; 03_ppo_alignment/ppo_config.py gives the value of each with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a run of PPO depends on; rewards are in the unit of the scores, KL in nats."""

    updates: int
    batch_size: int  # answers per update
    micro_batch_size: int  # answers that one forward or backward pass takes; memory, not the result, depends on it
    mini_batches: int  # optimiser steps per pass over the batch
    epochs: int  # passes over each batch
    learning_rate: float
    trained_share: float = 1.0  # of the policy's layers, the upper ones; those below are frozen (shared_layers)
    answers_per_prompt: int = 1  # from 2 on, the others to the prompt are the baseline, and no value is learnt
    advantage: str = "gae"  # or one of algorithm.GROUP_ADVANTAGES, which need several answers per prompt
    max_new_tokens: int = 96
    max_prompt_tokens: int = 256  # with the template; a batch is padded to its longest prompt
    temperature: float = 1.0
    value_learning_rate: float | None = None  # of what learns the values beside the policy; None: the same
    adam_epsilon: float = 1e-8  # in units of the gradient: what it exceeds moves a weight less than at the full rate
    warmup_updates: int = 0
    kl_coef: float = 0.05
    kl_target: float | None = None  # nats per answer; with one, kl_coef is only the start (algorithm.adapted_kl_coef)
    kl_horizon: float = 10_000  # answers over which an adaptive kl_coef moves
    kl_ceiling: float | None = None  # nats per answer; above it for `kl_patience` updates, the run stops
    kl_patience: int = 3
    cliprange: float = 0.2  # of the ratio pi / pi_old
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    missing_eos_penalty: float = 0.0  # subtracted from the score of an answer that did not end
    max_grad_norm: float = 1.0
    checkpoint_every: int = 0  # updates; 0: never
    seed: int = 0
