"""NaN and infinity: each stage stops, says where and with which prompts, and saves nothing."""

import dataclasses
import math

from rlhf import finite, generation, metrics, models, outputs, pretraining, sft
from rlhf.data import load_preferences
from rlhf.ppo import trl
from rlhf.reward import pairs, scoring
from rlhf.reward import training as reward_training

import numpy as np
import pytest
import torch
from conftest import ppo_settings
from datasets import Dataset
from ppo_stage import make

NAN = float("nan")


@torch.no_grad()
def poisoned(model, value=NAN):
    """The model with one weight that is not finite, in the norm before its head."""
    generation.trunk_of(model).ln_f.weight[0] = value
    return model


def examples(profile, tokenizer, count=16):
    rows = load_preferences(profile)["train"].select(range(count))
    prompts = [f"{prompt}\n" for prompt in rows["prompt"]]
    return sft.tokenize(Dataset.from_dict({"prompt": prompts, "completion": rows["chosen"]}), tokenizer)


def sft_trainer(profile, model, tokenizer, **options):
    train = examples(profile, tokenizer)
    return sft.make_trainer(profile, "sft_full", model, tokenizer, train, train, **{"learning_rate": 1e-3} | options)


def test_rule_names_what_is_not_finite_where_with_prompts_and_checkpoint():
    finite.require("here", {"loss": 1.0, "scores": [0, 1], "weights": torch.ones(2), "none": np.array([])})
    numbers = {"loss": math.inf, "scores": [0.0, NAN], "weights": torch.tensor([NAN]), "kl": 0.5}
    with pytest.raises(finite.NotFiniteError) as error:
        finite.require("step 7", numbers, prompts=iter("abcde"), kept="update_5", advice="Lower it.")
    assert str(error.value) == (
        "step 7: loss and scores and weights not finite (loss inf, kl 0.5); prompts of the batch: 'a', 'b', 'c' and 2 "
        "more; last checkpoint: update_5. Lower it."
    )
    assert isinstance(error.value, ValueError) and isinstance(error.value, FloatingPointError)


def test_healthy_numbers_make_no_prompts():
    def prompts():
        raise AssertionError
        yield

    finite.require("here", {"loss": 1.0}, prompts=prompts())


def test_fine_tuning_with_nan_weights_stops_at_its_first_step_and_saves_nothing(profile_with_base):
    tokenizer, model = models.load_tokenizer(profile_with_base), poisoned(models.load_base(profile_with_base))
    trainer = sft_trainer(profile_with_base, model, tokenizer)
    message = r"sft_full, step 1, learning rate 0\.001: loss not finite \(loss nan\); prompts of the batch: 'What"
    with pytest.raises(finite.NotFiniteError, match=message + r".*last checkpoint: .*base\. Lower"):
        trainer.train()
    with pytest.raises(finite.NotFiniteError, match=r"checkpoint sft_full_final: transformer\.ln_f\.weight not finite"):
        outputs.save_checkpoint(profile_with_base, "sft_full_final", model, tokenizer)
    assert not outputs.checkpoint_path(profile_with_base, "sft_full_final").exists()


def test_gradient_that_is_not_finite_never_reaches_the_weights(profile_with_base):
    tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.transformer.ln_f.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(finite.NotFiniteError, match=r"sft_full, step 1, .*gradient not finite"):
        sft_trainer(profile_with_base, model, tokenizer).train()
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_absurd_learning_rate_stops_with_the_step_and_the_rate(profile_with_base):
    tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
    with pytest.raises(finite.NotFiniteError, match=r"sft_full, step \d, learning rate 1e\+38: .* not finite"):
        sft_trainer(profile_with_base, model, tokenizer, learning_rate=1e38).train()


def with_rates(profile, *rates):
    return dataclasses.replace(profile, sft=dataclasses.replace(profile.sft, full_learning_rates=rates))


def test_search_leaves_a_diverged_rate_out_with_a_line(profile_with_base, capsys):
    profile, tokenizer = with_rates(profile_with_base, 1e-3, 1e38), models.load_tokenizer(profile_with_base)
    train = examples(profile, tokenizer)
    searched = sft.search_learning_rate(profile, "full", tokenizer, train, train)
    assert list(searched.learning_rate) == [1e-3] and sft.best_learning_rate(searched) == 1e-3
    assert "full, learning rate 1e+38: it diverged and is left out (search_full_1e+38, step" in capsys.readouterr().out


def test_search_of_which_every_rate_diverges_is_an_error(profile_with_base):
    profile, tokenizer = with_rates(profile_with_base, 1e37, 1e38), models.load_tokenizer(profile_with_base)
    train = examples(profile, tokenizer)
    with pytest.raises(finite.NotFiniteError, match=r"full: each rate \(1e\+37, 1e\+38\) diverged; set lower ones"):
        sft.search_learning_rate(profile, "full", tokenizer, train, train)


def test_validation_loss_that_is_not_finite_stops_the_training(profile_with_base):
    tokenizer, model = models.load_tokenizer(profile_with_base), models.load_base(profile_with_base)
    trainer = sft_trainer(profile_with_base, model, tokenizer)
    poisoned(model)
    with pytest.raises(finite.NotFiniteError, match="eval_loss not finite"):
        trainer.evaluate()


def test_reward_training_with_nan_weights_stops_and_scoring_names_the_prompt(profile_with_sft):
    tokenizer = models.load_tokenizer(profile_with_sft)
    model = poisoned(models.new_reward_model(profile_with_sft, 0))
    splits = pairs.load_pairs(profile_with_sft, tokenizer)
    with pytest.raises(finite.NotFiniteError, match="scoring: reward not finite; prompts of the batch: 'What now"):
        scoring.score(model, tokenizer, ["What now?"], ["Rest."], [True])
    trainer = reward_training.make_trainer(profile_with_sft, model, tokenizer, splits["train"], splits["validation"])
    with pytest.raises(
        finite.NotFiniteError, match=r"reward_model, step 1, learning rate .*: loss not finite .*prompts"
    ):
        trainer.train()


@pytest.mark.parametrize("value", [NAN, math.inf])
@pytest.mark.parametrize("options", [{"temperature": 1.0}, {"num_beams": 2}, {}])
def test_answers_of_a_model_with_such_weights_are_refused(policy, tokenizer, options, value):
    prompts = ["What now?", "And then?"]
    with pytest.raises(finite.NotFiniteError, match="sampling.*'What now" if "temperature" in options else "decoding"):
        generation.generate_answers(
            poisoned(policy, value), tokenizer, prompts, max_new_tokens=4, batch_size=2, **options
        )


def test_log_probabilities_that_are_none_are_refused(policy, tokenizer):
    answer = generation.Answer("a", (5, tokenizer.eos_token_id), True)
    with pytest.raises(finite.NotFiniteError, match=r"reading answers: log-probabilities not finite; prompts .*'What"):
        generation.answer_logprobs(poisoned(policy), tokenizer, ["What now?"], [answer], batch_size=1)


@pytest.mark.parametrize("bad", [NAN, math.inf])
def test_summaries_refuse_what_is_no_number(bad):
    good, values = [0.0, 1.0, 2.0, 4.0], [0.0, bad, 1.0, 3.0]
    with pytest.raises(finite.NotFiniteError, match="summary of ppo: reward not finite"):
        metrics.summary_rows("ppo", {"words": good, "reward": values})
    for summary in (
        lambda: metrics.bootstrap_interval(values),
        lambda: metrics.paired_difference(values, good),
        lambda: metrics.gap_closed(good, values, [1.0] * 4),
        lambda: metrics.rank_correlation(good, values),
        lambda: metrics.calibration(values),
        lambda: metrics.over_optimisation(np.array([good]), np.array([values])),
    ):
        with pytest.raises(finite.NotFiniteError):
            summary()


def test_ppo_with_nan_weights_stops_before_a_reward_is_asked_for(stage):
    def never(*_):
        raise AssertionError

    trainer = make(stage, reward_fn=never)
    poisoned(trainer.policy)
    with pytest.raises(finite.NotFiniteError, match=r"update 1: log-probabilities of the answers not finite; prompts"):
        trainer.step()


def test_ppo_reward_that_is_none_is_named_with_response_prompt_and_checkpoint(stage, tmp_path):
    trainer = make(stage, reward_fn=lambda p, r, e: [0.0] * 7 + [NAN], checkpoints=tmp_path)
    path = trainer.save()
    with pytest.raises(finite.NotFiniteError, match=rf"update 1: reward \(.* returned nan .*prompts.*: '.*{path.name}"):
        trainer.step()


def test_checkpoint_of_ppo_with_such_weights_is_not_written(stage, tmp_path):
    trainer = make(stage, checkpoints=tmp_path / "training")
    poisoned(trainer.policy)
    with pytest.raises(finite.NotFiniteError, match=r"checkpoint of update 0: .*ln_f.weight not finite"):
        trainer.save()
    assert not (tmp_path / "training").exists()


def trl_trainer(stage):
    profile, tokenizer, prompts = stage
    settings = ppo_settings(dataclasses.replace(profile, max_steps=1), "trl")
    policy, reference = (models.load_policy(profile, "sft_full") for _ in range(2))
    reward_model, value_model = (models.new_reward_model(profile, seed) for seed in range(2))
    ids = Dataset.from_dict({"input_ids": generation.encode_prompts(tokenizer, prompts)})
    return trl.make_trainer(profile, settings, policy, reference, reward_model, value_model, tokenizer, ids)


def test_ppo_by_trl_stops_at_a_loss_or_answers_that_are_not_finite(stage):
    trainer = trl_trainer(stage)
    poisoned(trainer.reward_model)
    with pytest.raises(finite.NotFiniteError, match=r"ppo_trl, step \d, learning rate .*objective/"):
        trainer.train()
    trainer = trl_trainer(stage)
    poisoned(trainer.policy_model)
    with pytest.raises(finite.NotFiniteError, match="decoding: logits not finite"):
        trainer.train()


def test_pretraining_stops_at_such_a_loss_and_keeps_its_checkpoint(profile, tmp_path, monkeypatch):
    losses = iter([1.0])
    whole = pretraining._loss
    monkeypatch.setattr(pretraining, "_loss", lambda *given: whole(*given) * next(losses, NAN))
    lab = dataclasses.replace(profile.lab, documents=40)
    with pytest.raises(
        finite.NotFiniteError, match=r"pretraining, step 2: loss and gradient .*last checkpoint: .*there"
    ):
        pretraining.pretrain(dataclasses.replace(profile, lab=lab, max_steps=8), tmp_path / "there")
