"""PPO from scratch: each function against a naive one in float64, the trainer against TRL, a task, a resumed run."""

import dataclasses
import math

from rlhf import models, rewards
from rlhf.data import load_preferences
from rlhf.generation import answer, response_logprobs

import numpy as np
import pytest
import torch
from conftest import import_stage
from trl.experimental.ppo import ppo_trainer as trl_ppo

ppo = import_stage("03_ppo_alignment/ppo.py")
ppo_config = import_stage("03_ppo_alignment/ppo_config.py")
trl_stage = import_stage("03_ppo_alignment/ppo_trl.py")
ppo_data = import_stage("03_ppo_alignment/prepare_data.py")

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
    got = ppo.sequence_logprobs(logits, tokens, temperature=0.7)
    for i in range(2):
        for j in range(3):
            powers = [math.exp(value / 0.7) for value in logits[i, j].tolist()]
            assert got[i, j].item() == pytest.approx(math.log(powers[tokens[i, j]] / sum(powers)), rel=1e-12)


def test_logprobs_stay_finite_where_an_exponential_would_overflow():
    got = ppo.sequence_logprobs(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert got.tolist() == [0.0, -1000.0]


def test_written_out_gradient_of_the_logprobs_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([0, 3, 3])
    assert torch.autograd.gradcheck(lambda x: ppo.sequence_logprobs(x, tokens, 0.7), logits)


@pytest.mark.parametrize(("shape", "temperature", "message"), [((2, 4), 1.0, "don't predict"), ((2,), 0.0, "positive")])
def test_logprobs_refuse_other_shapes_and_temperatures(shape, temperature, message):
    with pytest.raises(ValueError, match=message):
        ppo.sequence_logprobs(torch.zeros(2, 5), torch.zeros(shape, dtype=torch.long), temperature)


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
    loss, clipped = ppo.policy_loss(logprobs, old, advantages, mask, clip=0.2)
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


def test_adaptive_price_follows_the_clipped_error_and_the_fixed_one_stays():
    adaptive, fixed = ppo.AdaptiveKL(0.1, target=5.0, horizon=100), ppo.FixedKL(0.1)
    for kl, factor in ((50.0, 1.02), (0.0, 0.98), (5.5, 1.01), (5.0, 1.0)):
        before = adaptive.coef
        adaptive.update(kl, responses=10)
        fixed.update(kl, responses=10)
        assert adaptive.coef == pytest.approx(before * factor)
    assert fixed.coef == 0.1
    with pytest.raises(ValueError, match="must be positive"):
        ppo.AdaptiveKL(0.1, target=0.0, horizon=100)


def test_response_ends_with_its_first_eos():
    responses = torch.tensor([[5, 9, 9, 5], [9, 5, 5, 5], [5, 5, 5, 5]])
    assert ppo.response_mask(responses, eos=9).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]


# The trainer


SETTINGS = ppo.Settings(
    updates=2,
    batch_size=8,
    micro_batch_size=3,
    mini_batches=2,
    epochs=2,
    max_new_tokens=12,
    learning_rate=1e-3,
    temperature=0.8,
    warmup_updates=1,
)


@pytest.fixture
def stage(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    prompts = sorted(set(load_preferences(profile_with_sft)["train"]["prompt"]))[:24]
    return profile_with_sft, tokenizer, prompts


def words(prompts, responses):
    """A reward by hand: more distinct words."""
    return [float(len(set(text.split()))) for text in responses]


def make(stage, settings=SETTINGS, reward_fn=words, **options):
    profile, tokenizer, prompts = stage
    policy, ref = models.load_sft(profile), models.load_sft(profile)
    return ppo.PPOTrainer(policy, ref, reward_fn, tokenizer, prompts, settings, **options)


def test_logprobs_of_a_rollout_are_those_of_each_answer_alone(stage):
    _, tokenizer, prompts = stage
    trainer = make(stage)
    rollout = trainer.generate(list(range(8)))
    logprobs, values = trainer.read(rollout)
    assert rollout.logprobs.numpy() == pytest.approx(logprobs.numpy(), abs=1e-4)
    answers = answer(trainer.policy, tokenizer, prompts[:8], max_new_tokens=12, batch_size=1, temperature=0.8)
    given = [
        a._replace(token_ids=tuple(row[keep.bool()].tolist()))
        for a, row, keep in zip(answers, rollout.responses, rollout.mask, strict=True)
    ]
    alone = response_logprobs(trainer.policy, tokenizer, prompts[:8], given, batch_size=1, temperature=0.8)
    assert logprobs.sum(dim=1).numpy() == pytest.approx(alone, abs=1e-4)
    assert (logprobs[rollout.mask == 0] == 0).all() and (values == 0).all()
    assert trainer.read_ref(rollout).numpy() == pytest.approx(logprobs.numpy(), abs=1e-6)


def test_values_noted_while_sampling_are_those_of_a_forward_pass(stage):
    trainer = make(stage)
    with torch.no_grad():
        trainer.value_head.weight.normal_()
    rollout = trainer.generate(list(range(8)))
    assert rollout.values.abs().sum() > 1
    assert rollout.values.detach().numpy() == pytest.approx(trainer.read(rollout)[1].numpy(), abs=1e-4)


def test_value_head_learns_at_its_own_rate_and_both_warm_up(stage):
    trainer = make(stage, dataclasses.replace(SETTINGS, value_learning_rate=0.3, warmup_updates=1))
    for warmth in (0.5, 1.0):
        trainer.step()
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([1e-3 * warmth, 0.3 * warmth])
    assert {id(p) for p in trainer.optimizer.param_groups[1]["params"]} == set(map(id, trainer.value_head.parameters()))


def test_gradient_that_is_not_finite_stops_the_run_before_it_reaches_the_weights(stage, monkeypatch):
    trainer = make(stage)
    before = [p.detach().clone() for p in trainer.parameters]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(float("inf")))
    with pytest.raises(FloatingPointError, match="update 1: grad_norm not finite"):
        trainer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, trainer.parameters, strict=True))


def test_gradient_does_not_depend_on_the_micro_batch(stage):
    weights = []
    for size in (1, 3, 8):
        trainer = make(stage, dataclasses.replace(SETTINGS, micro_batch_size=size, warmup_updates=0))
        trainer.step()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.parameters]))
    assert torch.allclose(weights[0], weights[1], atol=2e-5) and torch.allclose(weights[0], weights[2], atol=2e-5)
    before = torch.cat([p.detach().flatten() for p in models.load_sft(stage[0]).parameters()])
    assert not torch.allclose(weights[0][: len(before)], before, atol=2e-4)


def test_gradient_of_the_tied_embedding_is_that_of_the_whole_model(stage):
    trainer = make(stage)
    weight = trainer.policy.get_input_embeddings().weight
    assert trainer.embedding.sparse and weight is trainer.policy.get_output_embeddings().weight
    rollout = trainer.generate(list(range(8)))
    for rows in torch.arange(8).split(4):  # the second is added to the first
        trainer.forward(rollout, rows)[0].sum().backward()
    trainer._join_tied_gradients()
    gradient, weight.grad = weight.grad, None
    trainer.embedding.sparse = False
    positions = (rollout.attention.cumsum(dim=1) - 1).clamp(min=0)
    logits = trainer.policy(rollout.sequences, attention_mask=rollout.attention, position_ids=positions).logits
    tokens = rollout.responses.shape[1]
    logprobs = (logits[:, -tokens - 1 : -1] / trainer.settings.temperature).log_softmax(dim=-1)
    chosen = logprobs.gather(-1, rollout.responses.unsqueeze(-1)).squeeze(-1)
    (chosen * rollout.mask).sum().backward()
    assert gradient.layout is torch.strided and weight.grad.abs().max() > 1
    assert torch.allclose(gradient, weight.grad, atol=1e-4)


def test_training_leaves_the_reference_as_it_was_and_writes_one_row_per_update(stage, tmp_path):
    trainer = make(stage, logs=tmp_path)
    before = {name: p.clone() for name, p in trainer.ref.state_dict().items()}
    curve = trainer.train()
    assert all(torch.equal(before[name], p) for name, p in trainer.ref.state_dict().items())
    assert curve["update"].tolist() == [1, 2] and curve.episode.tolist() == [8, 16]
    assert curve.drop(columns="explained_variance").notna().all(axis=None)
    assert curve.kl[0] == pytest.approx(0, abs=1e-5) and curve.kl[1] != 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_same_seed_gives_the_same_curve_and_another_seed_another(stage):
    curves = [make(stage, dataclasses.replace(SETTINGS, seed=seed)).train() for seed in (1, 1, 2)]
    assert curves[0].equals(curves[1]) and not curves[0].equals(curves[2])


@pytest.mark.parametrize("separate", [False, True])
def test_resumed_run_is_bit_identical(stage, tmp_path, separate):
    settings = dataclasses.replace(SETTINGS, updates=4, checkpoint_every=2, kl_target=0.01, kl_horizon=50)

    def new(folder):
        value_model = models.new_reward_model(stage[0], seed=0) if separate else None
        return make(stage, settings, checkpoints=folder, value_model=value_model)

    whole = new(tmp_path / "whole")
    whole.train()
    resumed = new(tmp_path / "resumed")
    resumed.resume(tmp_path / "whole" / "update_00002")
    assert resumed.update == 2
    resumed.train()
    assert resumed.curve.equals(whole.curve)
    for mine, theirs in zip(resumed.parameters, whole.parameters, strict=True):
        assert torch.equal(mine, theirs)
    assert not list((tmp_path / "whole").glob(".*"))


def test_checkpoint_of_another_run_and_a_folder_without_one_are_refused(stage, tmp_path):
    trainer = make(stage, checkpoints=tmp_path)
    path = trainer.save()
    other = make((*stage[:2], stage[2][:-1]))
    with pytest.raises(ValueError, match="made with 24 prompts, but there are 23 now"):
        other.resume(path)
    with pytest.raises(FileNotFoundError, match=r"no state\.json"):
        trainer.resume(tmp_path)
    with pytest.raises(ValueError, match="no folder for checkpoints"):
        other.save()


@pytest.mark.parametrize(
    ("reward_fn", "message"),
    [
        (lambda prompts, responses: [0.0] * (len(responses) - 1), r"shape \(7,\) for 8 responses"),
        (lambda prompts, responses: [[0.0]] * len(responses), r"shape \(8, 1\)"),
        (lambda prompts, responses: [0.0] * 7 + [float("nan")], "returned nan for the response"),
    ],
)
def test_reward_of_a_wrong_shape_or_not_a_number_is_refused(stage, reward_fn, message):
    with pytest.raises(ValueError, match=message):
        make(stage, reward_fn=reward_fn).step()


def test_settings_that_do_not_fit_are_refused(stage):
    profile, tokenizer, prompts = stage
    with pytest.raises(ValueError, match="5 prompts are fewer than a batch of 8"):
        make((profile, tokenizer, prompts[:5]))
    with pytest.raises(ValueError, match="3 equal mini-batches"):
        make(stage, dataclasses.replace(SETTINGS, mini_batches=3))
    with pytest.raises(ValueError, match="doesn't fit into the context"):
        make(stage, dataclasses.replace(SETTINGS, max_new_tokens=250))
    policy = models.load_sft(profile)
    policy.lm_head = torch.nn.Linear(policy.config.hidden_size, policy.config.vocab_size)
    with pytest.raises(ValueError, match=r"head of the policy .* needs a linear layer without bias"):
        ppo.PPOTrainer(policy, models.load_sft(profile), words, tokenizer, prompts, SETTINGS)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="pad token that is not EOS"):
        make(stage)


def test_answer_that_did_not_end_pays_or_gets_the_score_in_its_place(stage):
    for changes, expected in (
        ({"missing_eos_penalty": 2.0}, lambda score, ended: score - 2 * (not ended)),
        ({"missing_eos_score": -7.0}, lambda score, ended: score if ended else -7.0),
    ):
        trainer = make(stage, dataclasses.replace(SETTINGS, **changes))
        rollout = trainer.generate(list(range(8)))
        rollout = rollout._replace(ended=torch.tensor([True, False] * 4))
        plain = words(None, trainer.texts(rollout))
        got = trainer.score(stage[2][:8], rollout).tolist()
        assert got == [expected(score, i % 2 == 0) for i, score in enumerate(plain)]


def test_run_that_is_not_finite_stops_with_the_update_and_the_last_checkpoint(stage, tmp_path):
    trainer = make(stage, dataclasses.replace(SETTINGS, checkpoint_every=1), checkpoints=tmp_path)
    trainer.step()
    path = trainer.save()
    with torch.no_grad():
        trainer.value_head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=rf"update 2: .*value_loss.* not finite .*{path.name}"):
        trainer.train()


def test_kl_above_its_ceiling_stops_the_run_and_says_so(stage, capsys):
    settings = dataclasses.replace(SETTINGS, updates=8, kl_ceiling=-1.0, kl_patience=2)
    trainer = make(stage, settings)
    trainer.train()
    assert trainer.update == 2
    assert "Stopped after 2 of 8 updates: the KL has been above -1 nats for 2 updates" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_learns_a_task_that_every_ppo_must_solve(stage, seed):
    """The share of words that begin with "s", from about one in ten to nearly all within 30 updates."""

    def share(_, responses):
        return [float(np.mean([word.startswith("s") for word in text.split() or [""]])) for text in responses]

    settings = dataclasses.replace(
        SETTINGS, updates=30, batch_size=24, micro_batch_size=24, kl_coef=0.0, learning_rate=8e-3, lam=1.0,
        temperature=1.0, seed=seed, max_new_tokens=8,
    )  # fmt: skip
    curve = make(stage, settings, reward_fn=share).train()
    assert curve.reward.head(3).mean() < 0.2
    assert curve.reward.tail(3).mean() > 0.9


# Against TRL


def test_one_update_equals_that_of_trl(stage, monkeypatch):
    """The same rollout and settings, in TRL's conventions: score after EOS, separate value model, no gradient clipping.

    TRL runs here and its numbers are read off while it does: nothing of it stands in a file.
    """
    profile, tokenizer, prompts = stage
    settings = dataclasses.replace(
        ppo_config.get_settings(profile), updates=1, micro_batch_size=8, mini_batches=1, epochs=2, warmup_updates=0,
        value_clip=0.05, lam=0.9, gamma=0.97, learning_rate=1e-3, missing_eos_penalty=0.7, score_after_eos=True,
        max_grad_norm=float("inf"), value_learning_rate=None, adam_epsilon=1e-5,
    )  # fmt: skip
    monkeypatch.setattr(trl_stage, "get_settings", lambda _: settings)
    four = [models.load_sft(profile), models.load_sft(profile)]
    four += [models.new_reward_model(profile, seed=seed) for seed in (0, 1)]
    with torch.no_grad():  # a reference of its own, so that there is a KL; a value that is not 0
        for parameter in four[1].parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    seen = {"whitened": [], "sequences": [], "scores": []}
    whiten, get_reward = trl_ppo.masked_whiten, trl_ppo.get_reward

    def record_whitening(values, mask, *args, **kwargs):
        seen["whitened"].append((values.clone(), mask.clone(), whiten(values, mask, *args, **kwargs)))
        return seen["whitened"][-1][-1].clone()

    def record_reward(model, sequences, pad, context):
        result = get_reward(model, sequences, pad, context)
        if model is four[2]:
            seen["scores"].append(result[1].clone())
            seen["sequences"].append((sequences.clone(), context))
        return result

    monkeypatch.setattr(trl_ppo, "masked_whiten", record_whitening)
    monkeypatch.setattr(trl_ppo, "get_reward", record_reward)
    start = [{name: p.clone() for name, p in four[i].state_dict().items()} for i in (0, 1, 3)]
    theirs = trl_stage.make_trainer(profile, *four, tokenizer, ppo_data.get_ppo_prompts(prompts, tokenizer))
    theirs.train()
    entry = next(e for e in theirs.state.log_history if "objective/kl" in e)

    settings = dataclasses.replace(settings, micro_batch_size=3)
    policy, ref = models.load_sft(profile), models.load_sft(profile)
    value_model = models.new_reward_model(profile, seed=1)
    for model, state in zip((policy, ref, value_model), start, strict=True):
        model.load_state_dict(state)
    given = {}
    mine = ppo.PPOTrainer(
        policy, ref, lambda *_: given["scores"], tokenizer, prompts, settings, value_model=value_model
    )
    sequences, context = seen["sequences"][0]
    responses = sequences[:, context:]
    mask = ppo.response_mask(responses, tokenizer.eos_token_id)
    attention = torch.cat([(sequences[:, :context] != tokenizer.pad_token_id).long(), mask], dim=1)
    ended = (responses == tokenizer.eos_token_id).any(dim=1)
    rollout = ppo.Rollout(sequences, attention, responses, mask, ended)
    reward_model = models.new_reward_model(profile, seed=0)
    with torch.no_grad():
        given["scores"] = [
            reward_model(input_ids=s[a.bool()][None]).logits.item() for s, a in zip(sequences, attention, strict=True)
        ]
    assert given["scores"] == pytest.approx(seen["scores"][0].tolist(), abs=1e-4)

    monkeypatch.setattr(mine, "generate", lambda _: rollout)
    recorded = {}
    optimise = mine.optimise

    def record_optimise(rollout, logprobs, values, advantages, returns):
        recorded.update(values=values, advantages=advantages, returns=returns)
        return optimise(rollout, logprobs, values, advantages, returns)

    monkeypatch.setattr(mine, "optimise", record_optimise)
    row = mine.step()
    raw, theirs_mask, whitened = seen["whitened"][0]
    assert torch.equal(theirs_mask.long(), mask)
    assert recorded["advantages"].numpy() == pytest.approx((whitened * mask).numpy(), abs=1e-4)
    value_mask = mine.value_mask(rollout)
    assert (recorded["returns"] - recorded["values"]).numpy() == pytest.approx((raw * value_mask).numpy(), abs=1e-4)
    for name, key in {
        "reward": "objective/scores",
        "kl": "objective/kl",
        "reward_minus_kl": "objective/rlhf_reward",
        "policy_loss": "loss/policy_avg",
        "value_loss": "loss/value_avg",
        "clip_fraction": "policy/clipfrac_avg",
    }.items():
        assert row[name] == pytest.approx(entry[key], abs=1e-4), name
    assert row["kl"] != pytest.approx(0, abs=1e-3)
    for model, other in ((policy, four[0]), (value_model, four[3])):
        for name, parameter in other.state_dict().items():
            assert torch.allclose(model.state_dict()[name], parameter, atol=1e-4), name


def test_reward_of_a_trained_model_can_be_the_reward_function(stage):
    profile, tokenizer, prompts = stage
    model = models.new_reward_model(profile, seed=0)
    trainer = make(stage, reward_fn=lambda p, r: rewards.score(model, tokenizer, p, r))
    rollout = trainer.generate(list(range(8)))
    expected = rewards.score(model, tokenizer, prompts[:8], trainer.texts(rollout))
    assert trainer.score(prompts[:8], rollout).numpy() == pytest.approx(expected, abs=1e-6)
