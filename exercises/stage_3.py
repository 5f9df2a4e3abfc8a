"""Solutions to the exercises of 03_ppo_alignment: python exercises/stage_3.py, after a run of its notebooks."""

import itertools
from functools import cache

from rlhf import dpo, metrics, models, outputs
from rlhf.data import load_preferences
from rlhf.evaluation.answers import decode, prompt_rows
from rlhf.generation import Answer, answer_logprobs, right_padded
from rlhf.lab import gold_table
from rlhf.ppo import algorithm as ppo
from rlhf.profiles import load_profile, set_up
from rlhf.reward import scoring
from rlhf.studies.faults import logits_at_last_column
from rlhf.tokens import encode

import numpy as np
import torch
from scipy.special import logsumexp
from torch.distributions import Categorical, kl_divergence

PROMPTS, ANSWERS = 16, 32


@cache
def answered(profile, policy: str) -> tuple[np.ndarray, np.ndarray]:
    """Rewards (in standard deviations of SFT's) and words of answers to validation prompts: (PROMPTS, ANSWERS)."""
    tokenizer, model = models.load_tokenizer(profile), models.load_policy(profile, policy)
    prompts = [p for p in prompt_rows(profile, tokenizer, "validation")["prompt"][:PROMPTS] for _ in range(ANSWERS)]
    texts, _, ended = zip(*decode(profile, model, tokenizer, prompts, "sample"), strict=True)
    scores = scoring.score(models.load_reward_model(profile), tokenizer, prompts, texts, ended)
    rewards = scores / outputs.read_json(profile, "reward_unit.json")["logits"]
    return rewards.reshape(-1, ANSWERS), np.reshape([len(text.split()) for text in texts], (-1, ANSWERS))


def reweighted(rewards: np.ndarray, kl_coef: float) -> tuple[float, float]:
    """Mean reward, and KL from pi_ref, of pi_ref exp(reward / kl_coef), from pi_ref's answers: (prompts, answers)."""
    log_weights = rewards / kl_coef - logsumexp(rewards / kl_coef, axis=1, keepdims=True)
    weights = np.exp(log_weights)
    kl = (weights * (log_weights + np.log(rewards.shape[1]))).sum(axis=1)
    return (weights * rewards).sum(axis=1).mean(), kl.mean()


def other_coefficient(profile):
    """Without training, find what the best policy for a KL coefficient of 2, 1, 0.5 and 0.25 would reach: weigh 32
    answers of SFT to each prompt by exp(reward / coefficient). Compare KL and reward with those of PPO.

    The lower the coefficient, the more reward and the more KL. With 32 answers no KL above log 32 = 3.5 nats can be
    seen; near it one answer has all the weight. So for the run's own coefficient this says no more than best of 32.
    """
    rewards, found = answered(profile, models.start_key(profile))[0], {}
    kl = outputs.read_csv(profile, "ppo_curve.csv").query("model == 'ppo'").kl.iloc[-1]
    print(f"SFT: reward {rewards.mean():+.2f}; PPO: {answered(profile, 'ppo')[0].mean():+.2f}, KL at its end {kl:.2f}")
    for kl_coef in (2.0, 1.0, 0.5, 0.25):
        found[kl_coef] = reweighted(rewards, kl_coef)
        print("KL coefficient {}: reward {:+.2f}, KL {:.2f}".format(kl_coef, *found[kl_coef]))
    return found


def unit_of_the_reward(profile):
    """Multiply the reward model's scores by 2. Which KL coefficient leaves the whitened advantages as they were?

    Twice the coefficient: every reward doubles, and so does the standard deviation that whitening divides by. With the
    old one the penalty has half its weight. The penalty for a missing EOS is in the same unit and would have to follow.
    """
    draw = torch.Generator().manual_seed(0)
    logprobs, reference = (torch.randn(4, 5, generator=draw) for _ in range(2))
    scores, mask, found = torch.randn(4, generator=draw), torch.ones(4, 5), []
    for factor, kl_coef in ((1, 0.1), (2, 0.2), (2, 0.1)):
        rewards = ppo.kl_penalised_rewards(logprobs, reference, factor * scores, mask, kl_coef)
        found.append(ppo.masked_whiten(ppo.gae(rewards, torch.zeros(4, 5), mask, gamma=1.0, lam=1.0)[0], mask))
        change = (found[-1] - found[0]).abs().max()
        print(f"scores times {factor}, KL coefficient {kl_coef}: advantages change by up to {change:.4f}")
    return found


def gae_by_definition(profile):
    """Write GAE as the double sum of its definition, and compare it with ppo.gae on answers of 6 and of 3 tokens.

    The recursion A_t = delta_t + gamma lambda A_(t+1) is the same sum from behind, in one pass instead of one for each
    token. After the last token there is neither value nor reward; garbage under the padding changes nothing.
    """
    rewards, values = torch.randn(2, 2, 6, generator=torch.Generator().manual_seed(0))
    mask, mine, gamma, lam = torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]), torch.zeros(2, 6), 0.99, 0.95
    for row, length in enumerate(mask.sum(dim=1)):
        r, v = rewards[row, :length], torch.cat([values[row, :length], torch.zeros(1)])
        delta = r + gamma * v[1:] - v[:-1]
        for t in range(length):
            mine[row, t] = sum((gamma * lam) ** i * delta[t + i] for i in range(length - t))
    theirs = ppo.gae(rewards, values, mask, gamma, lam)[0]
    print(f"largest difference: {(mine - theirs).abs().max():.1e}")
    return mine, theirs


def estimates_of_the_kl(profile):
    """For a policy near the reference and one far from it, both over three outcomes, compute the KL, and the mean and
    the standard deviation of k1, k3 and k2 = d^2 / 2, as exact sums over the outcomes.

    The mean of k1 and of k3 is the KL, that of k2 is not. Near, k3 varies less than k1. Far, it varies more: exp(-d) is
    huge for what the policy hardly ever does and the reference still does.
    """
    found, mask = {}, torch.ones(3, 1)
    for name, logits in (("near", [0.2, 0.1, -0.1]), ("far", [6.0, 0.0, -4.0])):
        p, q = (Categorical(logits=torch.tensor(values)) for values in (logits, [0.0, 0.0, 0.0]))
        k1, k3 = ppo.kl_estimates(p.logits.unsqueeze(1), q.logits.unsqueeze(1), mask)
        found[name] = {"KL": kl_divergence(p, q).item()}
        print(f"{name}: KL {found[name]['KL']:.4f}")
        for estimate, k in {"k1": k1, "k2": k1**2 / 2, "k3": k3}.items():
            mean = (p.probs * k).sum()
            found[name][estimate] = mean.item(), (p.probs * (k - mean) ** 2).sum().sqrt().item()
            print("  {}: mean {:.4f}, standard deviation {:.4f}".format(estimate, *found[name][estimate]))
    return found


def baselines_by_enumeration(profile):
    """A policy has three answers, of reward 1, 2 and 6, and is asked twice. Sum over the nine outcomes: what is the
    expected gradient in its logits with no baseline, with the reward of the other answer, and with the mean of both?

    Without one and with the other's reward it is the true gradient, the second with less variance. The mean of both
    contains the answer itself, which shrinks the gradient to (k - 1) / k of the true one, here to half.
    """
    policy, rewards = Categorical(logits=torch.tensor([0.5, 0.0, -0.5])), torch.tensor([1.0, 2.0, 6.0])
    true, found = policy.probs * (rewards - (policy.probs * rewards).sum()), {}
    for name in ("none", "the other", "mean of both"):
        outcomes = []
        for drawn in itertools.product(range(3), repeat=2):
            r = rewards[list(drawn)]
            baseline = {"none": 0.0, "the other": ppo.leave_one_out(r, answers=2), "mean of both": r.mean()}[name]
            score = torch.eye(3)[list(drawn)] - policy.probs  # the gradient of log pi
            outcomes.append((policy.probs[list(drawn)].prod(), ((r - baseline).unsqueeze(1) * score).mean(dim=0)))
        mean = sum(p * g for p, g in outcomes)
        found[name] = mean, sum(p * ((g - mean) ** 2).sum() for p, g in outcomes).item()
        print(f"baseline {name}: {(mean / true).mean():.2f} of the true gradient, variance {found[name][1]:.2f}")
    return true, found


def length_alone(profile):
    """How much of PPO's gain in reward could length explain? Among SFT's answers to one prompt, regress reward on
    words; multiply the slope by what PPO's answers are longer, and compare with PPO's gain.

    The product is what PPO would gain by more words of SFT's kind. It is no proof: a longer answer may be better for
    what its words say. And the slope belongs to SFT's answers; far outside of their lengths it need not hold.
    """
    (rewards, words), (new_rewards, new_words) = (answered(profile, m) for m in (models.start_key(profile), "ppo"))
    centred = words - words.mean(axis=1, keepdims=True)
    slope = (centred * rewards).sum() / max(1e-9, (centred**2).sum())
    by_length, gain = slope * (new_words.mean() - words.mean()), new_rewards.mean() - rewards.mean()
    print(
        f"{slope:+.4f} a word, {new_words.mean() - words.mean():+.1f} words: {by_length:+.2f} of a gain of {gain:+.2f}"
    )
    return slope, by_length, gain


def borrowed_ending(profile):
    """A probe of your own: add to each chosen answer the last sentence of the answer to another prompt. How often does
    the reward model like that better than the chosen answer, and what does the gold score say?

    Gold counts the sentence as foreign or off the topic, so hardly ever is the answer worth more. How often the reward
    model prefers it says what it would pay PPO for endings that belong to another question.
    """
    tokenizer, model = models.load_tokenizer(profile), models.load_reward_model(profile)
    rows = prompt_rows(profile, tokenizer, "test")
    prompts, chosen = list(rows["prompt"][:100]), list(rows["chosen"][:100])
    others = chosen[len(chosen) // 2 :] + chosen[: len(chosen) // 2]
    longer = [f"{text} {other.split('. ')[-1]}" for text, other in zip(chosen, others, strict=True)]
    scores = [scoring.score(model, tokenizer, prompts, texts, [True] * len(texts)) for texts in (longer, chosen)]
    beats = metrics.wins(*scores).mean()
    print(f"beats the chosen answer: {beats:.2f}")
    if profile.lab:
        gold = [gold_table(profile, prompts, texts).gold for texts in (longer, chosen)]
        print(f"by gold: {metrics.wins(*gold).mean():.2f}, mean change {np.subtract(*gold).mean():+.2f}")
    return beats


def kl_of_best_of_n(profile):
    """Simulate the KL of best of n for n = 4 and 16, and compare it with the formula. Then compute it exactly for a
    policy that has eight answers, all equally likely.

    The quantile u of the best of n has density n u^(n - 1); the KL is the mean of its logarithm. With eight answers the
    best is drawn again and again: the KL stays below the formula, and can never exceed log 8 = 2.08.
    """
    found, places = {}, np.arange(9) / 8
    for n in (4, 16):
        best = np.random.default_rng(0).random((20_000, n)).max(axis=1)
        eight = np.diff(places**n)
        found[n] = np.log(n * best ** (n - 1)).mean(), metrics.best_of_n_kl(n), (eight * np.log(8 * eight)).sum()
        print("n = {}: simulated {:.3f}, formula {:.3f}, of eight answers {:.3f}".format(n, *found[n]))
    return found


def peak_of_noise(profile):
    """Six points of a curve all have the same true gold score, and means with a standard error of 0.1. How far does the
    curve seem to fall from its highest point to its last? And on other prompts, with the peak chosen on the first ones?

    The highest of six means is too high by 1.27 standard errors on average, so a fall is found where there is none.
    Measured on other prompts it is gone: so metrics.over_optimisation has one half to choose and one to measure.
    """
    chosen_on, others = 0.1 * np.random.default_rng(0).standard_normal((2, 20_000, 6))
    peaks = chosen_on.argmax(axis=1, keepdims=True)
    falls = [(m[:, -1:] - np.take_along_axis(m, peaks, axis=1)).mean() for m in (chosen_on, others)]
    print(f"apparent change {falls[0]:+.3f}, on other prompts {falls[1]:+.3f}")
    return falls


def fitted(distance: np.ndarray, gain: np.ndarray) -> tuple[float, float]:
    """The alpha and beta of gain = d (alpha - beta log d), by least squares."""
    return tuple(np.linalg.lstsq(np.stack([distance, -distance * np.log(distance)], axis=1), gain, rcond=None)[0])


def law_of_over_optimisation(profile):
    """Fit gold(d) - gold(0) = d (alpha - beta log d), d being the square root of the KL, to each curve of PPO (Gao et
    al. 2022). Where is the peak, and how does it compare with the best point that was measured?

    The derivative alpha - beta - beta log d is zero at d = exp(alpha / beta - 1). In the committed curves that lies
    before the first point after SFT: the far points decide the fit, and nothing was measured where it has its peak.
    """
    if not profile.lab or not (outputs.evaluation_dir(profile) / "overoptimisation.csv").exists():
        return print("left out: needs the lab profile and make study")
    curves, found = outputs.read_csv(profile, "overoptimisation.csv").query("method == 'ppo'"), []
    for (setting, seed), curve in curves.groupby(["setting", "seed"], sort=False):
        d, later = np.sqrt(curve.kl[curve.x > 0]), curve.gold[curve.x > 0]
        gain = later - curve.gold[curve.x == 0].item()
        alpha, beta = fitted(d, gain)
        error = np.sqrt(((gain - d * (alpha - beta * np.log(d))) ** 2).mean())
        found.append((np.exp(2 * (alpha / beta - 1)), curve.kl[curve.gold.idxmax()], error))
        shown = "peak of the law at {:.1f} nats, best point at {:.1f}; error of the law {:.2f}".format(*found[-1])
        print(f"{setting}, seed {seed}: {shown}")
    return found


def mask_by_pad(profile):
    """Pad SFT's answers with EOS, and build the mask by `tokens != pad`. How many tokens does it lose against the mask
    that ends with the first EOS?

    One for each answer that ended: its EOS. No other token is lost, so neither a mean over tokens nor a shape shows it.
    """
    tokenizer, model = models.load_tokenizer(profile), models.load_policy(profile, models.start_key(profile))
    answers = decode(profile, model, tokenizer, prompt_rows(profile, tokenizer, "validation")["prompt"][:8], "sample")
    eos = tokenizer.eos_token_id
    responses, _ = right_padded([list(answer.token_ids) for answer in answers], eos)
    lost = (ppo.response_mask(responses, eos) - (responses != eos).long()).sum().item()
    print(f"{lost} tokens lost, {sum(answer.ended for answer in answers)} answers ended")
    return lost, sum(answer.ended for answer in answers)


def score_in_a_batch(profile):
    """Score the shortest chosen answer of the validation split alone, and in a batch with others, each time at its last
    real token and in the last column of the batch. Which of the two changes with the batch?

    The last column does: in the batch it is padding. At the last real token only rounding differs.
    """
    tokenizer, model = models.load_tokenizer(profile), models.load_reward_model(profile)
    pairs = load_preferences(profile)["validation"].select(range(16))
    rows = sorted(scoring.encode(tokenizer, pairs["prompt"], pairs["chosen"], [True] * 16), key=len)
    pad, found = tokenizer.pad_token_id, {}
    for place, read in (("last real token", scoring.score_tokens), ("last column", logits_at_last_column)):
        alone, among = (read(model, batch, pad)[0] for batch in (rows[:1], rows))
        found[place] = among - alone
        print(f"{place}: alone {alone:+.3f}, in a batch {among:+.3f}")
    return found


def two_answers(profile):
    """With two answers to a prompt, what are RLOO's advantages in closed form, and what are Dr. GRPO's? What does GRPO
    make of them, however near the two rewards are?

    RLOO: the difference of the two and its negative. Dr. GRPO: half of that. GRPO: 0.71 and -0.71 whatever the
    difference, because the deviation of two numbers is their difference divided by the root of 2.
    """
    found = {}
    for difference in (4.0, 0.4):
        totals, mask = torch.tensor([1.0 + difference, 1.0]), torch.ones(2, 5)
        found[difference] = {name: of(totals, 2, mask)[:, 0].tolist() for name, of in ppo.GROUP_ADVANTAGES.items()}
        shown = (f"{name} {of[0]:+.2f} and {of[1]:+.2f}" for name, of in found[difference].items())
        print(f"difference {difference:g}: {', '.join(shown)}")
    return found


def implicit_reward(profile):
    """DPO's implicit reward is beta (log pi - log pi_ref). With PPO's policy as pi: on which share of the test pairs is
    it higher for the chosen answer, and of which share does the reward model prefer it?

    PPO learnt to write what is scored high, near to SFT, not to rank answers that it would not write. How far the first
    share lies above one half says how much of the reward model's ranking went over into the policy all the same.
    """
    tokenizer, rows = models.load_tokenizer(profile), load_preferences(profile)["test"]
    rows = rows.select(range(min(len(rows), profile.eval_prompts)))
    prompts, sides, ended = list(rows["prompt"]), ("chosen", "rejected"), [True] * len(rows)
    eos = tokenizer.eos_token_id
    ids = {side: [(*row, eos) for row in encode(tokenizer, rows[side])] for side in sides}
    of = {side: [Answer(*row, True) for row in zip(rows[side], ids[side], strict=True)] for side in sides}
    policies = [models.load_policy(profile, name) for name in ("ppo", models.start_key(profile))]
    size = profile.decoding.batch_size
    logprobs = [[answer_logprobs(p, tokenizer, prompts, of[side], batch_size=size) for p in policies] for side in sides]
    gains = [policy - start for policy, start in logprobs]
    model = models.load_reward_model(profile)
    scores = [scoring.score(model, tokenizer, prompts, list(rows[side]), ended) for side in sides]
    implicit, explicit = (metrics.wins(*both).mean() for both in (gains, scores))
    print(f"of {len(rows)} pairs PPO's policy ranks {implicit:.2f} as labelled, the reward model {explicit:.2f}")
    return implicit, explicit


def fitted_by_dpo(start, rewards, beta: float, paired: int):
    """Logits of the policy with the lowest expected loss of DPO, from those of SFT, over all pairs of the first
    `paired` answers, labelled by a Bradley-Terry rater who knows the rewards."""
    i, j = torch.triu_indices(paired, paired, offset=1)
    prefers, before = torch.sigmoid(rewards[i] - rewards[j]), start.log_softmax(0)
    logits = start.clone().requires_grad_()
    options = {"max_iter": 500, "tolerance_grad": 1e-12, "tolerance_change": 0}
    optimiser = torch.optim.LBFGS([logits], line_search_fn="strong_wolfe", **options)

    def loss():
        optimiser.zero_grad()
        now = logits.log_softmax(0)
        as_labelled, reversed_ = (dpo.dpo_loss(now[a], now[b], before[a], before[b], beta) for a, b in ((i, j), (j, i)))
        value = (prefers * as_labelled + (1 - prefers) * reversed_).mean()
        value.backward()
        return value

    optimiser.step(loss)
    return logits.detach()


def optimum_of_dpo(profile):
    """Eight answers with known rewards, an SFT policy over them, and a Bradley-Terry rater of all pairs: minimise the
    expected loss of DPO, and compare the policy with pi_SFT exp(r / beta). Then leave two answers out of the pairs.

    They are equal: with infinitely many labels DPO finds the policy that PPO looks for. The loss has no gradient in the
    logits of answers that are in no pair: nothing says what they are worth, and their probability changes only as the
    others make room. PPO would sample and score them.
    """
    draw, beta, found = torch.Generator().manual_seed(0), 0.5, {}
    start, rewards = (torch.randn(8, generator=draw, dtype=torch.float64) for _ in range(2))
    best = (start + rewards / beta).log_softmax(0)
    for paired in (8, 6):
        logits = fitted_by_dpo(start, rewards, beta, paired)
        gap, moved = (logits.log_softmax(0) - best).abs(), (logits - start).abs()
        found[paired] = gap.numpy(), moved.numpy()
        print(f"{paired} of 8 in pairs: log-probabilities are off the optimum by at most {gap.max():.1e};")
        print(f"  the logits of the last two moved by at most {moved[6:].max():.1e}")
    return found


SOLUTIONS = (other_coefficient, unit_of_the_reward, gae_by_definition, estimates_of_the_kl, baselines_by_enumeration)
SOLUTIONS += (length_alone, borrowed_ending, kl_of_best_of_n, peak_of_noise, law_of_over_optimisation)
SOLUTIONS += (mask_by_pad, score_in_a_batch, two_answers, implicit_reward, optimum_of_dpo)

if __name__ == "__main__":
    set_up(run := load_profile())
    for solution in SOLUTIONS:
        print("", solution.__name__, sep="\n")
        solution(run)
