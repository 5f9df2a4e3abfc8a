"""The value function before PPO: fitted to the rewards of SFT answers, so that the first advantages mean something."""

from collections.abc import Sequence

from rlhf.generation import Answer
from rlhf.template import format_prompt

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit_value_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[Answer],
    rewards: np.ndarray,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    max_steps: int | None = None,
) -> float:
    """Train a copy of the reward model to predict, before each token of an answer, the reward that it will get.

    The head starts at zero; trunk and head are fitted by least squares. With gamma = 1 and lambda = 1 the return of
    each token is the reward of its answer (less the KL to come, which is zero where PPO starts), so this is the value
    function of the policy that wrote `answers` (Sutton and Barto 2018, section 9.3, gradient Monte Carlo).

    `prompts` are without template, `rewards` is (len(prompts),), in the unit that PPO will see. A fifth of the answers
    is held out. Returns the share of the variance of their rewards that the values explain, over all their tokens: 1
    is perfect, 0 the mean. Raises ValueError for fewer than ten answers.
    """
    if len(answers) < 10:
        raise ValueError(f"{len(answers)} answers are too few to fit and to check a value function; give at least 10.")
    prompt_ids = tokenizer([format_prompt(prompt) for prompt in prompts], truncation=False, verbose=False)["input_ids"]
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(answers))
    held_out, fitted = np.split(order, [len(order) // 5])
    targets = torch.tensor(rewards, dtype=torch.float32, device=model.device)

    def at_each_token(batch: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Values before each token of the batch's answers and after the last one, and the rewards: both (tokens,)."""
        values, mask = token_values(model, tokenizer, [prompt_ids[i] for i in batch], [answers[i] for i in batch])
        return values[mask], targets[batch][:, None].expand(mask.shape)[mask]

    with torch.no_grad():
        model.score.weight.zero_()
    model.eval()  # no dropout, as in PPO
    steps = epochs * -(-len(fitted) // batch_size)
    steps = min(steps, max_steps or steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, steps + 1, pct_start=0.1)
    rows = np.empty(0, dtype=int)
    progress = tqdm(range(steps), desc="value model", unit="step", mininterval=5)
    for _ in progress:
        if not len(rows):
            rows = generator.permutation(fitted)
        batch, rows = rows[:batch_size], rows[batch_size:]
        loss = torch.nn.functional.mse_loss(*at_each_token(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)
    with torch.no_grad():
        batches = [held_out[start : start + batch_size] for start in range(0, len(held_out), batch_size)]
        values, targets_of = (torch.cat(parts) for parts in zip(*map(at_each_token, batches), strict=True))
    spread = (targets_of - targets[fitted].mean()).square().mean()
    return 1 - ((values - targets_of).square().mean() / spread).item()


def token_values(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt_ids: list[list[int]], answers: Sequence[Answer]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The head at every token of prompt and answer, (batch, tokens), and where a value is meant: from the prompt's last
    token, which is before the answer's first, to the answer's last. Rows are padded on the right.
    """
    rows = [ids + list(answer.token_ids) for ids, answer in zip(prompt_ids, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    attention = torch.zeros_like(ids)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, (row, prompt) in enumerate(zip(rows, prompt_ids, strict=True)):
        ids[i, : len(row)] = torch.tensor(row)
        attention[i, : len(row)] = 1
        mask[i, len(prompt) - 1 : len(row)] = True
    trunk = getattr(model, model.base_model_prefix)
    hidden = trunk(input_ids=ids.to(model.device), attention_mask=attention.to(model.device)).last_hidden_state
    return model.score(hidden).squeeze(-1), mask.to(model.device)
