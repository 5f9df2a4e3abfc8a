"""The functions of PPO, each against a naive one in float64."""

import math

from rlhf.ppo import algorithm as ppo

import numpy as np
import pytest
import torch

LENGTHS = (4, 1, 3, 6)  # of the responses; 6 columns


@pytest.fixture
def batch():
    """Random float64 tensors (4, 6) with garbage outside of the mask, which must never matter."""
    generator = torch.Generator().manual_seed(0)

    def draw():
        values = torch.randn(len(LENGTHS), max(LENGTHS), generator=generator, dtype=torch.float64)
        return torch.where(mask.bool(), values, 1e6)

    mask = torch.tensor([[float(t < length) for t in range(max(LENGTHS))] for length in LENGTHS])
    return mask, draw


def tokens_under(mask, *tensors):
    """The values under the mask as plain numbers, one tuple per token."""
    return [tuple(t[i, j].item() for t in tensors) for i, j in mask.nonzero().tolist()]


def test_logprobs_are_those_of_the_softmax_at_the_temperature():
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 3, 5, dtype=torch.float64), torch.randint(0, 5, (2, 3))
    got = ppo.token_logprobs(logits, tokens, temperature=0.7)
    for i in range(2):
        for j in range(3):
            powers = [math.exp(value / 0.7) for value in logits[i, j].tolist()]
            assert got[i, j].item() == pytest.approx(math.log(powers[tokens[i, j]] / sum(powers)), rel=1e-12)


def test_logprobs_stay_finite_where_an_exponential_would_overflow():
    got = ppo.token_logprobs(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert got.tolist() == [0.0, -1000.0]


def test_written_out_gradient_of_the_logprobs_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 3, 3])
    assert torch.autograd.gradcheck(lambda x: ppo.token_logprobs(x, tokens, 0.7), logits)


@pytest.mark.parametrize(("shape", "temperature", "message"), [((2, 4), 1.0, "don't predict"), ((2,), 0.0, "positive")])
def test_logprobs_refuse_other_shapes_and_temperatures(shape, temperature, message):
    with pytest.raises(ValueError, match=message):
        ppo.token_logprobs(torch.zeros(2, 5), torch.zeros(shape, dtype=torch.long), temperature)


def test_masked_mean_is_the_mean_of_what_the_mask_shows(batch):
    mask, draw = batch
    values = draw()
    shown = [value for (value,) in tokens_under(mask, values)]
    assert ppo.masked_mean(values, mask).item() == pytest.approx(sum(shown) / len(shown))
    with pytest.raises(ValueError, match="empty"):
        ppo.masked_mean(values, torch.zeros_like(mask))


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitened_values_have_unit_variance_and_keep_their_mean_only_if_asked(batch, shift_mean):
    mask, draw = batch
    values = draw()
    shown = np.array(tokens_under(mask, values))[:, 0]
    whitened = ppo.masked_whiten(values, mask, shift_mean)
    got = np.array(tokens_under(mask, whitened))[:, 0]
    expected = (shown - shown.mean()) / shown.std(ddof=1) + (0 if shift_mean else shown.mean())
    assert got == pytest.approx(expected, abs=1e-7)
    assert (whitened[mask == 0] == 0).all()
    with pytest.raises(ValueError, match="at least two"):
        ppo.masked_whiten(values, torch.eye(4, 6) * torch.tensor([[1.0], [0], [0], [0]]))


def test_reward_is_the_kl_penalty_and_the_score_on_the_last_token(batch):
    mask, draw = batch
    logprobs, ref_logprobs, scores = draw(), draw(), torch.tensor([5.0, -2.0, 0.5, 1.0])
    got = ppo.kl_penalised_rewards(logprobs, ref_logprobs, scores, mask, kl_coef=0.2)
    for i, length in enumerate(LENGTHS):
        for t in range(max(LENGTHS)):
            expected = -0.2 * (logprobs[i, t] - ref_logprobs[i, t]) if t < length else 0.0
            expected += scores[i] if t == length - 1 else 0.0
            assert got[i, t].item() == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(ValueError, match="response 1 of the batch is empty"):
        ppo.kl_penalised_rewards(logprobs, ref_logprobs, scores, mask * torch.tensor([[1.0], [0], [1], [1]]), 0.2)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.0)])
def test_advantages_are_the_discounted_sums_of_the_temporal_differences(batch, gamma, lam):
    mask, draw = batch
    reward, values = draw(), draw()
    advantages, returns = ppo.gae(reward, values, mask, gamma, lam)
    for i, length in enumerate(LENGTHS):
        r, v = reward[i, :length].tolist(), [*values[i, :length].tolist(), 0.0]
        deltas = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(max(LENGTHS)):
            expected = sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, length))
            assert advantages[i, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[i, t].item() == pytest.approx(expected + v[t] if t < length else 0.0, abs=1e-12)


def test_at_lambda_one_the_return_is_the_sum_of_the_rewards_to_come():
    reward = torch.tensor([[0.0, 0.0, 1.0, 4.0]])
    values, mask = torch.tensor([[3.0, 1.0, 2.0, 9.0]]), torch.tensor([[1, 1, 1, 0]])
    advantages, returns = ppo.gae(reward, values, mask, gamma=1.0, lam=1.0)
    assert returns.tolist() == [[1.0, 1.0, 1.0, 0.0]]
    assert advantages.tolist() == [[-2.0, 0.0, -1.0, 0.0]]


def test_policy_loss_is_the_clipped_objective(batch):
    mask, draw = batch
    logprobs, old, advantages = 0.3 * draw(), 0.3 * draw(), draw()
    loss, clipped = ppo.policy_loss(logprobs, old, advantages, mask, cliprange=0.2)
    terms, caught = [], []
    for new, before, advantage in tokens_under(mask, logprobs, old, advantages):
        ratio = math.exp(new - before)
        held = min(max(ratio, 0.8), 1.2)
        terms.append(-min(ratio * advantage, held * advantage))
        caught.append(held * advantage < ratio * advantage)
    assert loss.item() == pytest.approx(sum(terms) / len(terms), rel=1e-12)
    assert clipped.item() == pytest.approx(sum(caught) / len(caught)) and 0 < sum(caught) < len(caught)


def test_policy_gradient_is_that_of_finite_differences_and_zero_where_clipped_or_padded():
    old, mask = torch.zeros(1, 4, dtype=torch.float64), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    advantages = torch.tensor([[1.0, 1.0, -1.0, 1.0]], dtype=torch.float64)
    logprobs = torch.tensor([[0.5, 0.1, 0.5, 0.0]], dtype=torch.float64, requires_grad=True)  # ratios 1.65, 1.1, 1.65
    assert torch.autograd.gradcheck(lambda x: ppo.policy_loss(x, old, advantages, mask, 0.2)[0], logprobs)
    ppo.policy_loss(logprobs, old, advantages, mask, 0.2)[0].backward()
    expected = [0.0, -math.exp(0.1) / 3, math.exp(0.5) / 3, 0.0]
    assert logprobs.grad[0].tolist() == pytest.approx(expected)


def test_value_loss_is_half_the_worse_squared_error(batch):
    mask, draw = batch
    values, old, returns = draw(), draw(), draw()
    terms = []
    for value, before, target in tokens_under(mask, values, old, returns):
        held = before + min(max(value - before, -0.5), 0.5)
        terms.append(max((value - target) ** 2, (held - target) ** 2) / 2)
    assert ppo.value_loss(values, old, returns, mask, 0.5).item() == pytest.approx(sum(terms) / len(terms))


def test_both_kl_estimates_are_sums_over_the_response_and_k3_is_never_negative(batch):
    mask, draw = batch
    logprobs, ref_logprobs = draw(), draw()
    k1, k3 = ppo.kl_estimates(logprobs, ref_logprobs, mask)
    for i, length in enumerate(LENGTHS):
        d = (logprobs[i, :length] - ref_logprobs[i, :length]).tolist()
        assert k1[i].item() == pytest.approx(sum(d))
        assert k3[i].item() == pytest.approx(sum(math.exp(-x) - 1 + x for x in d))
    assert (k3 >= 0).all() and (k1 < 0).any()


def test_both_kl_estimates_have_the_kl_as_their_mean():
    p, q = (torch.tensor(values, dtype=torch.float64) for values in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))
    exact = (p * (p / q).log()).sum()
    k1, k3 = ppo.kl_estimates(p.log()[:, None], q.log()[:, None], torch.ones(3, 1))  # a row per possible token
    assert (p * k1).sum().item() == pytest.approx(exact.item())
    assert (p * k3).sum().item() == pytest.approx(exact.item())


def test_adapted_kl_coefficient_follows_the_clipped_error():
    coef = 0.1
    for kl, factor in ((50.0, 1.02), (0.0, 0.98), (5.5, 1.01), (5.0, 1.0)):
        before, coef = coef, ppo.adapted_kl_coef(coef, kl, target=5.0, responses=10, horizon=100)
        assert coef == pytest.approx(before * factor)
    with pytest.raises(ValueError, match="must be positive"):
        ppo.adapted_kl_coef(0.1, 1.0, target=0.0, responses=10, horizon=100)


def test_response_ends_with_its_first_eos():
    responses = torch.tensor([[5, 9, 9, 5], [9, 5, 5, 5], [5, 5, 5, 5]])
    assert ppo.response_mask(responses, eos=9).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


def test_baseline_of_an_answer_is_the_mean_of_the_others_to_its_prompt():
    totals = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 7.0])
    assert ppo.leave_one_out(totals, 3).tolist() == pytest.approx([4.0, 3.5, 1.5, 3.5, 3.0, -0.5])
    assert ppo.leave_one_out(totals, 2).tolist() == [2.0, 1.0, -1.0, 6.0, 7.0, 0.0]


LONG = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])


def test_rloo_with_two_answers_is_their_difference():
    totals = torch.tensor([1.0, 4.0, 2.0, 2.5])
    got = ppo.rloo(totals, 2, LONG[:4])
    assert got[:, 0].tolist() == [-3.0, 3.0, -0.5, 0.5]
    assert torch.equal(got, got[:, :1] * LONG[:4])  # the same for each token, 0 on padding


def test_grpo_is_centred_scaled_by_the_deviation_and_weighs_each_answer_the_same():
    totals = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 7.0])
    got = ppo.grpo(totals, 3, LONG)
    sums = got.sum(dim=1) / LONG.sum(dim=1).float().mean()  # over the tokens of an answer, whatever its length
    for start in (0, 3):
        group = totals[start : start + 3].numpy()
        expected = (group - group.mean()) / (group.std(ddof=1) + 1e-4)
        assert sums[start : start + 3].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
        assert sums[start : start + 3].sum().item() == pytest.approx(0, abs=1e-6)


def test_grpo_without_its_biases_is_rloo_but_for_a_factor():
    totals = torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 7.0])
    got = ppo.dr_grpo(totals, 3, LONG)
    means = totals.reshape(2, 3).mean(dim=1).repeat_interleave(3)
    assert torch.allclose(got, (totals - means)[:, None] * LONG)
    assert torch.allclose(got, 2 / 3 * ppo.rloo(totals, 3, LONG))


@pytest.mark.parametrize("name", ppo.GROUP_ADVANTAGES)
@pytest.mark.parametrize("answers", [2, 3, 6])
def test_equal_totals_give_no_gradient(name, answers):
    """Exactly: Adam would make a step of any rounding."""
    totals = torch.full((6,), 0.1) + torch.tensor([0.7] * answers + [0.0] * (6 - answers))
    assert torch.equal(ppo.GROUP_ADVANTAGES[name](totals, answers, LONG), torch.zeros(6, 4))


def test_gradient_of_rloo_on_new_answers_is_that_of_reinforce():
    """At pi = pi_old the clipped objective of each token has the gradient of -A log pi(answer), over all tokens."""
    logprobs = torch.linspace(-3, -0.1, 24).reshape(6, 4).requires_grad_()
    advantages = ppo.rloo(torch.tensor([1.0, 2.0, 6.0, -1.0, 0.0, 7.0]), 3, LONG)
    ppo.policy_loss(logprobs, logprobs.detach(), advantages, LONG, cliprange=0.2)[0].backward()
    clipped, logprobs.grad = logprobs.grad, None
    (-(advantages[:, 0] * (logprobs * LONG).sum(dim=1)).sum() / LONG.sum()).backward()
    assert torch.allclose(clipped, logprobs.grad) and clipped.any()


@pytest.mark.parametrize("answers", [1, 4])
def test_baseline_refuses_groups_that_do_not_fit(answers):
    calls = [lambda: ppo.leave_one_out(torch.zeros(6), answers)]
    calls += [lambda f=f: f(torch.zeros(6), answers, LONG) for f in ppo.GROUP_ADVANTAGES.values()]
    for call in calls:
        with pytest.raises(ValueError, match=f"6 answers can't be compared in groups of {answers}"):
            call()
