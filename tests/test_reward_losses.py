"""The losses of rankings: closed forms, probabilities that sum to one, and ties that say nothing."""

from itertools import permutations

from rlhf.reward.losses import pairwise_loss, plackett_luce_loss

import pytest
import torch
from torch.nn.functional import logsigmoid

SCORES = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)
LOSSES = [pairwise_loss, plackett_luce_loss]


def test_pairwise_loss_is_the_mean_over_the_six_pairs():
    expected = [-logsigmoid(SCORES[i] - SCORES[j]) for i, j in ((2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1))]
    assert pairwise_loss(SCORES, torch.tensor([2, 4, 1, 3])) == pytest.approx(float(sum(expected) / 6))


def test_probabilities_of_all_rankings_sum_to_one():
    every = torch.tensor(list(permutations(range(1, 5))))
    probabilities = (-plackett_luce_loss(SCORES.expand(24, 4), every)).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    first = every[:, 2] == 1  # the marginal of the first place is the softmax
    assert probabilities[first].sum() == pytest.approx(SCORES.softmax(0)[2].item())


@pytest.mark.parametrize("ranks", [[1, 2], [2, 1], [1, 1]])
def test_two_answers_have_the_same_loss_by_both(ranks):
    scores, ranks = SCORES[:2], torch.tensor(ranks)
    assert plackett_luce_loss(scores, ranks) == pytest.approx(pairwise_loss(scores, ranks).item())


@pytest.mark.parametrize("loss", LOSSES)
def test_each_item_of_a_batch_has_its_own_loss_and_the_level_of_scores_does_not_count(loss):
    ranks = torch.tensor([[1, 2, 3, 4], [2, 2, 1, 3], [1, 1, 1, 1]])
    scores = torch.stack([SCORES, SCORES + 5, SCORES])
    alone = torch.stack([loss(SCORES, of) for of in ranks])
    assert torch.allclose(loss(scores, ranks), alone) and alone[2] == 0


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_are_right_and_finite_with_ties(loss):
    scores = SCORES.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: loss(s, torch.tensor([2, 2, 1, 3])), scores)


def test_answers_of_a_tie_do_not_compete():
    first, second = SCORES[0], SCORES[3]
    expected = -logsigmoid(first - SCORES[1]) - logsigmoid(second - SCORES[1])
    assert plackett_luce_loss(SCORES[[0, 3, 1]], torch.tensor([1, 1, 2])) == pytest.approx(expected.item())
