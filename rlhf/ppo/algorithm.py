"""PPO as pure functions on tensors, in the order in which one update uses them.

Everywhere (batch, tokens) are the tokens of the responses, and a mask is 1 on those up to and including EOS and 0 on
the padding after it. Values under a 0 of the mask never change a result.
"""

import torch


def response_mask(responses: torch.Tensor, eos: int) -> torch.Tensor:
    """1 up to and including the first EOS of each row, 0 after it: (batch, tokens) from (batch, tokens)."""
    is_eos = (responses == eos).long()
    return (is_eos.cumsum(dim=1) - is_eos == 0).long()


class _ChosenLogprobs(torch.autograd.Function):
    """log softmax of the logits at the tokens. Its gradient is the one (..., vocabulary) tensor that it makes."""

    @staticmethod
    def forward(ctx, logits, tokens):
        normaliser = logits.logsumexp(-1, keepdim=True)
        ctx.save_for_backward(logits, tokens, normaliser)
        return (logits.gather(-1, tokens.unsqueeze(-1)) - normaliser).squeeze(-1)

    @staticmethod
    def backward(ctx, gradient):
        logits, tokens, normaliser = ctx.saved_tensors
        gradient = gradient.unsqueeze(-1)
        probabilities = (logits - normaliser).exp_()
        return probabilities.mul_(-gradient).scatter_add_(-1, tokens.unsqueeze(-1), gradient), None


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log pi(token) in nats under softmax(logits / temperature), the distribution that the tokens were drawn from.

    logits: (..., vocabulary), the prediction of each token; tokens: (...), integers. Returns (...), float32 or finer.
    d log pi(token) / d logits = onehot(token) - softmax(logits): written out, because autograd's chain of gather and
    logsumexp keeps several tensors of the size of the logits. Raises ValueError for shapes that don't match or a
    temperature that is not positive.
    """
    if logits.shape[:-1] != tokens.shape:
        raise ValueError(f"logits {tuple(logits.shape)} don't predict tokens {tuple(tokens.shape)}.")
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} is not positive.")
    logits = logits if temperature == 1 else logits / temperature
    return _ChosenLogprobs.apply(logits.float() if logits.dtype.itemsize < 4 else logits, tokens)


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the values under the mask, over all of them together: () from (batch, tokens).

    A mean per response first would weigh the tokens of short responses more. Raises ValueError for an empty mask.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("the mask is empty: there is no token to average over.")
    return torch.where(mask.bool(), values, 0.0).sum() / count


def masked_whiten(values: torch.Tensor, mask: torch.Tensor, shift_mean: bool = True) -> torch.Tensor:
    """Values divided by their standard deviation under the mask, their mean taken off unless shift_mean is False.

    values, mask: (batch, tokens). Returns (batch, tokens), 0 outside of the mask. The variance is the unbiased one, as
    in Huang et al. 2024, "The N+ implementation details of RLHF with PPO". Raises ValueError for less than two tokens.
    """
    count = mask.sum()
    if count < 2:
        raise ValueError(f"{int(count)} tokens under the mask have no variance; give at least two.")
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask) * count / (count - 1)
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0)


def kl_penalised_rewards(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, scores: torch.Tensor, mask: torch.Tensor, kl_coef: float
) -> torch.Tensor:
    """Reward of each token: -kl_coef * (log pi - log pi_ref), and the score of the response on its last token.

    logprobs, ref_logprobs, mask: (batch, tokens), of the sampled tokens, in nats; scores: (batch,). Returns
    (batch, tokens). Raises ValueError where a response is empty.
    Source: Ziegler et al. 2019, equation 2, with the k1 estimate of the KL.
    """
    lengths = mask.sum(dim=1).long()
    if (lengths == 0).any():
        raise ValueError(f"response {int((lengths == 0).nonzero()[0])} of the batch is empty: it has no last token.")
    rewards = torch.where(mask.bool(), -kl_coef * (logprobs - ref_logprobs), 0.0)
    return rewards.scatter_add(1, lengths.unsqueeze(1) - 1, scores.to(rewards.dtype).unsqueeze(1))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation: advantages and returns, the targets of the value function.

    delta_t = r_t + gamma V_{t+1} - V_t;  A_t = delta_t + gamma lam A_{t+1};  R_t = A_t + V_t, where V and A are 0 after
    the last token. rewards, values, mask: (batch, tokens). Returns two of (batch, tokens), 0 outside of the mask.
    Source: Schulman et al. 2016, equations 11 and 16.
    """
    mask = mask.to(values.dtype)
    rewards, values = torch.where(mask.bool(), rewards, 0.0), torch.where(mask.bool(), values, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t]
    return advantages, advantages + values


def leave_one_out(totals: torch.Tensor, answers: int) -> torch.Tensor:
    """What each answer is compared with where there is no value function: the mean of the others to its prompt.

    totals: (batch,), one number for each answer, `answers` to a prompt side by side. Returns (batch,). It does not
    depend on the answer itself, so as a baseline it leaves the mean of the gradient as it is. Raises ValueError for
    fewer than two answers to a prompt, or a batch that is no multiple of them.
    Source: Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; for RLHF, Ahmadian et al. 2024.
    """
    if answers < 2 or len(totals) % answers:
        raise ValueError(f"{len(totals)} answers can't be compared in groups of {answers}.")
    groups = totals.reshape(-1, answers)
    return ((groups.sum(dim=1, keepdim=True) - groups) / (answers - 1)).flatten()


def rloo(totals: torch.Tensor, answers: int, mask: torch.Tensor) -> torch.Tensor:
    """REINFORCE with a leave-one-out baseline: A_i = R_i - mean of the other R_j to the prompt, for each token of i.

    totals: (batch,), R_i, the score less the KL penalty of the whole answer; `answers` and errors as in leave_one_out;
    mask: (batch, tokens). Returns (batch, tokens). Source: Ahmadian et al. 2024, "Back to Basics", equation 6.
    """
    relative = totals - totals[::answers].repeat_interleave(answers)[: len(totals)]  # equal totals give exactly 0
    return (relative - leave_one_out(relative, answers)).unsqueeze(1) * mask


def dr_grpo(totals: torch.Tensor, answers: int, mask: torch.Tensor) -> torch.Tensor:
    """GRPO without its two biases: A_i = R_i - mean of all R_j to the prompt, (answers - 1) / answers of `rloo`.

    Arguments and result as of `rloo`. Source: Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.2.
    """
    return (answers - 1) / answers * rloo(totals, answers, mask)


def grpo(totals: torch.Tensor, answers: int, mask: torch.Tensor) -> torch.Tensor:
    """Group-relative advantages: A_i = (R_i - mean_j R_j) / (std_j R_j + 1e-4), each answer counting equally.

    The loss averages over tokens, so an answer's advantages are multiplied by the mean length over its own length: that
    is the 1 / |o_i| of the paper. Arguments and result as of `rloo`. Source: Shao et al. 2024, "DeepSeekMath", equation
    3; the 1e-4 is TRL's, and leaves 0 where all answers to a prompt have the same total.
    """
    centred, lengths = dr_grpo(totals, answers, mask), mask.sum(dim=1)
    deviation = totals.reshape(-1, answers).std(dim=1).repeat_interleave(answers)
    weights = lengths.float().mean() / lengths / (deviation + 1e-4)
    return centred * weights.unsqueeze(1)


GROUP_ADVANTAGES = {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo}


def policy_loss(
    logprobs: torch.Tensor, old_logprobs: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped objective, negated, and the share of tokens where the clipping took the gradient away.

    ratio = pi / pi_old;  L = -mean(min(ratio A, clamp(ratio, 1 - cliprange, 1 + cliprange) A)). All: (batch, tokens);
    returns two of (). Source: Schulman et al. 2017, equation 7.
    """
    ratio = torch.exp(torch.where(mask.bool(), logprobs - old_logprobs, 0.0))
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    loss = masked_mean(torch.maximum(unclipped, clipped), mask)
    return loss, masked_mean((clipped > unclipped).float(), mask).detach()


def value_loss(
    values: torch.Tensor, old_values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor, cliprange_value: float
) -> torch.Tensor:
    """Half the squared error of the values, of the worse of two: as they are, and held near the old ones.

    held = old + clamp(values - old, -cliprange_value, cliprange_value);  L = mean(max((values - returns)^2, (held -
    returns)^2)) / 2. All: (batch, tokens); returns (). Source: the value clipping of OpenAI's baselines, as in Huang et
    al. 2024.
    """
    held = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    return 0.5 * masked_mean(torch.maximum((values - returns) ** 2, (held - returns) ** 2), mask)


def kl_estimates(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two estimates of KL(pi || pi_ref) in nats per response, from tokens drawn from pi: k1 and k3.

    With d = log pi - log pi_ref of a token, k1 = d and k3 = exp(-d) - 1 + d, summed over the tokens of each response:
    (batch,) each. Both have the KL as their mean; k1 may be negative, k3 never is, and varies less while the two are
    near. Source: Schulman 2020, "Approximating KL divergence".
    """
    d = torch.where(mask.bool(), logprobs - ref_logprobs, 0.0)
    return d.sum(dim=1), (torch.exp(-d) - 1 + d).sum(dim=1)


def adapted_kl_coef(kl_coef: float, kl: float, target: float, responses: int, horizon: float) -> float:
    """The KL coefficient after a batch: higher while the KL is above its target, lower while it is below.

    e = clip(KL / target - 1, -0.2, 0.2);  coef <- coef (1 + e responses / horizon). The clipping keeps one odd batch
    from moving the coefficient far. kl and target: nats per response. Raises ValueError for a coefficient, target or
    horizon that is not positive. Source: Ziegler et al. 2019, section 2.2.
    """
    if min(kl_coef, target, horizon) <= 0:
        raise ValueError(f"KL coefficient {kl_coef}, target {target} and horizon {horizon} must be positive.")
    return kl_coef * (1 + min(max(kl / target - 1, -0.2), 0.2) * responses / horizon)


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) under the mask: 1 for a perfect value function, 0 for a constant one."""
    mask = mask.bool()
    variance = returns[mask].var()
    return float(1 - (returns - values)[mask].var() / variance) if variance > 0 else float("nan")
