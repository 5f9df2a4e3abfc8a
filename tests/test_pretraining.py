"""Pretraining of the lab's base: it learns from whole texts, goes on where it was stopped, and ships what it made."""

import dataclasses
import json
import random
import re

from rlhf import outputs, pretraining
from rlhf.lab import base_model
from rlhf.lab.corpus import documents
from rlhf.resume import load_optimizer_tensors, optimizer_tensors

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import stage_module, with_lab
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, EVERY = 13, 4  # the rows of the losses are of steps 4, 8, 12 and 13
SETTINGS = {"steps": STEPS, "batch_size": 4, "tokens": 64, "cycles": 1}


@pytest.fixture
def small(profile, monkeypatch):
    """A profile whose pretraining takes a moment."""
    monkeypatch.setattr(pretraining, "VALIDATION", 40)
    monkeypatch.setattr(pretraining, "CHECKPOINTS", 3)
    return with_lab(dataclasses.replace(profile, max_steps=None), documents=300, pretraining=SETTINGS)


@pytest.fixture
def checkpoint(small):
    return outputs.checkpoint_path(small, "pretraining")


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def without_times(losses: pd.DataFrame) -> pd.DataFrame:
    return losses.drop(columns="seconds")


def losses_by_hand(model, row: torch.Tensor, pad: int) -> torch.Tensor:
    """The loss of each token that is predicted in a row."""
    tokens = row[row != pad]
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0]
    return cross_entropy(logits[:-1], tokens[1:], reduction="none")


@pytest.fixture
def trained_on(monkeypatch):
    """The batches that are trained on and their losses, as they come."""
    seen, loss_of = [], pretraining._loss

    def recorded(model, tokenizer, batch):
        loss = loss_of(model, tokenizer, batch)
        if torch.is_grad_enabled():
            seen.append((batch, loss.item()))
        return loss

    monkeypatch.setattr(pretraining, "_loss", recorded)
    return seen


def test_rows_hold_whole_texts_each_ended_by_eos_and_little_padding(tokenizer):
    texts = documents(200, seed=0)
    whole = [(*tokenizer(text)["input_ids"], tokenizer.eos_token_id) for text in texts]
    length = 2 * max(map(len, whole))
    rows = pretraining._rows(texts, tokenizer, length)
    found = []
    for row in rows.tolist():
        tokens = row[: row.index(tokenizer.pad_token_id)] if tokenizer.pad_token_id in row else row
        assert set(row[len(tokens) :]) <= {tokenizer.pad_token_id}
        ends = [i + 1 for i, token in enumerate(tokens) if token == tokenizer.eos_token_id]
        assert ends[-1] == len(tokens)
        found += [tuple(tokens[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
    assert sorted(found) == sorted(whole)
    assert (rows != tokenizer.pad_token_id).float().mean() > 0.9


def test_no_two_rows_would_fit_into_one(tokenizer):
    texts = documents(200, seed=0)
    length = max(len(tokenizer(text)["input_ids"]) + 1 for text in texts)
    used = (pretraining._rows(texts, tokenizer, length) != tokenizer.pad_token_id).sum(1).sort().values
    assert used[0] + used[1] > length


def test_text_longer_than_a_row_loses_its_end(tokenizer):
    text = max(documents(20, seed=0), key=len)
    (row,) = pretraining._rows([text], tokenizer, 16).tolist()
    assert row == tokenizer(text)["input_ids"][:16]


def test_loss_is_the_mean_over_the_tokens_that_are_predicted_and_padding_is_none(policy, tokenizer):
    rows = pretraining._rows([*documents(7, seed=0), "Short."], tokenizer, 128)
    assert (rows == tokenizer.pad_token_id).any(1).sum() > 1
    by_hand = torch.cat([losses_by_hand(policy, row, tokenizer.pad_token_id) for row in rows])
    with torch.no_grad():
        assert pretraining._loss(policy, tokenizer, rows).item() == pytest.approx(by_hand.mean().item(), rel=1e-5)
    for batch_size in (1, 100):  # batches of unequal padding count by their tokens
        measured = pretraining._validation_loss(policy, tokenizer, rows, batch_size)
        assert measured == pytest.approx(by_hand.mean().item(), rel=1e-5)


def test_pretraining_lowers_the_loss(small, checkpoint):
    longer = with_lab(small, pretraining={"steps": 60, "batch_size": 8})
    model, tokenizer, losses = pretraining.pretrain(longer, checkpoint)
    before = base_model.new_model(small.lab, tokenizer, small.seed)
    new = pretraining._rows(documents(60, seed=99), tokenizer, 64)
    first, last = (pretraining._validation_loss(m, tokenizer, new, 8) for m in (before, model))
    assert first == pytest.approx(np.log(len(tokenizer)), abs=0.3)  # uniform over the vocabulary
    assert last < first - 1
    assert losses.validation_loss.iloc[-1] == pytest.approx(last, abs=0.5)
    assert (losses.loss.diff()[1:] < 0).all()
    assert not model.training


def test_losses_are_the_means_since_the_row_before(small, checkpoint, trained_on):
    *_, losses = pretraining.pretrain(small, checkpoint)
    assert list(losses.columns) == ["step", "tokens", "loss", "validation_loss", "seconds"]
    assert list(losses.step) == [4, 8, 12, 13]
    assert list(losses.tokens) == [step * 4 * 64 for step in (4, 8, 12, 13)]
    seen = [loss for _, loss in trained_on]
    means = [np.mean(seen[start:end]) for start, end in ((0, 4), (4, 8), (8, 12), (12, 13))]
    assert list(losses.loss) == pytest.approx(means)
    assert losses.seconds.is_monotonic_increasing and losses.seconds.iloc[0] >= 0


def test_validation_loss_of_the_last_row_is_that_of_the_model_that_is_returned(small, checkpoint):
    model, tokenizer, losses = pretraining.pretrain(small, checkpoint)
    rows = pretraining._rows(documents(40, small.seed + 1), tokenizer, 64)
    by_hand = torch.cat([losses_by_hand(model, row, tokenizer.pad_token_id) for row in rows])
    assert losses.validation_loss.iloc[-1] == pytest.approx(by_hand.mean().item(), rel=1e-4)


def test_every_row_is_trained_on_before_any_comes_again(small, checkpoint, trained_on):
    few = with_lab(small, documents=40)
    _, tokenizer, _ = pretraining.pretrain(few, checkpoint)
    rows = pretraining._rows(documents(40, small.seed), tokenizer, 64)
    seen = torch.cat([batch for batch, _ in trained_on])
    assert len(rows) < len(seen) == STEPS * 4
    assert torch.equal(seen, rows.repeat(9, 1)[: len(seen)])


def test_validation_documents_are_none_of_the_training_ones(small, checkpoint, monkeypatch):
    asked, documents_of = [], pretraining.documents
    monkeypatch.setattr(pretraining, "documents", lambda *given: asked.append(given) or documents_of(*given))
    pretraining.pretrain(small, checkpoint)
    (count, seed), (held_out, other_seed) = asked
    assert (count, held_out) == (300, 40)
    training, validation = documents(100 * count, seed), documents(10 * held_out, other_seed)
    assert set(training) & set(validation) == set()


def test_pretrained_model_has_the_shape_of_the_profile(small, checkpoint):
    model, tokenizer, _ = pretraining.pretrain(small, checkpoint)
    config, lab = model.config, small.lab
    assert (config.n_layer, config.n_embd, config.n_head) == (lab.layers, lab.width, lab.heads)
    assert (config.n_positions, config.vocab_size) == (lab.context, lab.vocabulary) == (256, len(tokenizer))
    assert config.pad_token_id == tokenizer.pad_token_id != config.eos_token_id


def test_pretraining_is_cut_short_by_max_steps_and_never_made_longer(small, checkpoint, trained_on):
    for max_steps, steps in ((2, 2), (100, STEPS)):
        trained_on.clear()
        cut = dataclasses.replace(small, max_steps=max_steps)
        *_, losses = pretraining.pretrain(cut, checkpoint.with_name(str(max_steps)))
        assert len(trained_on) == losses.step.iloc[-1] == steps


def test_same_seed_gives_the_same_weights_and_losses(small, checkpoint):
    first, tokenizer, losses = pretraining.pretrain(small, checkpoint)
    torch.rand(5)  # what was drawn before must not matter
    again, same_tokenizer, same_losses = pretraining.pretrain(small, checkpoint.with_name("again"))
    other, *_ = pretraining.pretrain(dataclasses.replace(small, seed=small.seed + 1), checkpoint.with_name("other"))
    assert torch.equal(weights(first), weights(again))
    assert tokenizer.get_vocab() == same_tokenizer.get_vocab()
    pd.testing.assert_frame_equal(without_times(losses), without_times(same_losses), check_exact=True)
    assert not torch.equal(weights(first), weights(other))


@pytest.fixture
def rates(monkeypatch):
    """The learning rate of each optimiser step of pretraining, as it goes on."""
    rates = []
    step = torch.optim.AdamW.step

    def recorded(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    return rates


def test_every_step_of_pretraining_has_a_learning_rate_above_zero(small, checkpoint, rates):
    pretraining.pretrain(with_lab(small, pretraining={"steps": 40}), checkpoint)
    highest = small.lab.pretraining.learning_rate
    assert len(rates) == 40 and rates[:3] == pytest.approx([highest / 3, highest * 2 / 3, highest])
    assert max(rates) == highest and rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < highest / 100


def test_each_cycle_of_pretraining_has_the_learning_rates_of_the_first(small, checkpoint, rates):
    pretraining.pretrain(with_lab(small, pretraining={"steps": 40, "cycles": 2}), checkpoint)
    assert len(rates) == 40 and rates[:20] == rates[20:]
    assert max(rates) == rates[1] == small.lab.pretraining.learning_rate and rates[19] < rates[1] / 100


def test_pretraining_leaves_the_global_generators_as_they_were(small, checkpoint):
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    for _ in range(2):  # the second goes on where the first ended
        pretraining.pretrain(small, checkpoint)
        assert (random.getstate(), str(np.random.get_state())) == before[:2]
        assert torch.equal(torch.get_rng_state(), before[2])


def stop_at(patch, owner, name: str, call: int) -> None:
    """Interrupt a run in a function's `call`th call, counted from 1."""
    calls, whole = [], getattr(owner, name)

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    patch.setattr(owner, name, stopping)


# Where each way to stop a run leaves it: how many steps are left to train.
STOPS = {
    "before the first checkpoint": ((torch.optim.AdamW, "step", 3), STEPS),
    "between two checkpoints": ((torch.optim.AdamW, "step", 7), STEPS - EVERY),
    "right behind a checkpoint": ((torch.optim.AdamW, "step", 9), STEPS - 2 * EVERY),
    "while it measures": ((pretraining, "_validation_loss", 2), STEPS - EVERY),
    "while it writes a checkpoint": ((pretraining, "save_file", 2), STEPS - EVERY),
    "in the last step": ((torch.optim.AdamW, "step", STEPS), 1),
    "while it writes the last checkpoint": ((pretraining, "save_file", 4), 1),
}


@pytest.fixture
def uninterrupted(small, checkpoint):
    return pretraining.pretrain(small, checkpoint.with_name("uninterrupted"))


@pytest.mark.parametrize("where", STOPS)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights_and_losses(
    small, checkpoint, uninterrupted, trained_on, where
):
    (owner, name, call), left = STOPS[where]
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, owner, name, call)
        with pytest.raises(KeyboardInterrupt):
            pretraining.pretrain(small, checkpoint)
    trained_on.clear()
    model, _, losses = pretraining.pretrain(small, checkpoint)
    assert len(trained_on) == left
    assert torch.equal(weights(model), weights(uninterrupted[0]))
    pd.testing.assert_frame_equal(without_times(losses), without_times(uninterrupted[2]), check_exact=True)
    assert losses.seconds.is_monotonic_increasing
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["pretraining", "uninterrupted"]  # no remains


def test_a_run_may_be_stopped_again_and_again(small, checkpoint, uninterrupted):
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, torch.optim.AdamW, "step", EVERY + 1)
            with pytest.raises(KeyboardInterrupt):
                pretraining.pretrain(small, checkpoint)
    model, _, losses = pretraining.pretrain(small, checkpoint)
    assert torch.equal(weights(model), weights(uninterrupted[0]))
    pd.testing.assert_frame_equal(without_times(losses), without_times(uninterrupted[2]), check_exact=True)


def test_a_finished_run_is_not_trained_again(small, checkpoint, trained_on):
    model, _, losses = pretraining.pretrain(small, checkpoint)
    trained_on.clear()
    again, _, same_losses = pretraining.pretrain(small, checkpoint)
    assert trained_on == []
    assert torch.equal(weights(again), weights(model))
    pd.testing.assert_frame_equal(same_losses, losses)
    assert not again.training


@pytest.mark.parametrize(
    "change",
    [
        lambda p: dataclasses.replace(p, seed=p.seed + 1),
        lambda p: dataclasses.replace(p, max_steps=STEPS - 1),
        lambda p: with_lab(p, width=64),
        lambda p: with_lab(p, vocabulary=1024),
        lambda p: with_lab(p, documents=301),
        lambda p: with_lab(p, pretraining={"steps": STEPS + 1}),
        lambda p: with_lab(p, pretraining={"batch_size": 5}),
        lambda p: with_lab(p, pretraining={"learning_rate": 1e-3}),
        lambda p: with_lab(p, pretraining={"cycles": 2}),
    ],
    ids=["seed", "max_steps", "width", "vocabulary", "documents", "steps", "batch_size", "learning_rate", "cycles"],
)
def test_checkpoint_of_other_settings_is_refused_by_name_and_kept(small, checkpoint, change):
    pretraining.pretrain(small, checkpoint)
    before = (checkpoint / "state.json").read_text()
    with pytest.raises(ValueError, match=r"checkpoints/smoke/pretraining is of a run with other settings; delete it"):
        pretraining.pretrain(change(small), checkpoint)
    assert (checkpoint / "state.json").read_text() == before
    pretraining.pretrain(dataclasses.replace(small, max_steps=STEPS + 1), checkpoint)  # that cuts nothing


def test_state_of_an_optimiser_comes_back_bit_for_bit():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
    one, other = (torch.optim.AdamW(layer.parameters(), lr=0.1 * (i + 1)) for i, layer in enumerate(layers))
    for _ in range(3):
        layers[0](torch.randn(5, 4)).square().sum().backward()
        one.step()
    tensors = optimizer_tensors(one)
    assert set(tensors) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    load_optimizer_tensors(other, tensors)
    again = optimizer_tensors(other)
    assert set(again) == set(tensors) and all(torch.equal(again[name], tensors[name]) for name in tensors)
    assert other.param_groups[0]["lr"] == 0.2  # the rate is the run's, not the file's


@pytest.fixture
def shipped(small, checkpoint, tmp_path):
    """What was trained, and the folder that it was shipped to; an older one stood there."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    (folder / "old.bin").write_text("of an older base")
    model, tokenizer, losses = pretraining.pretrain(small, checkpoint)
    before = weights(model).clone()
    pretraining.ship(small, model, tokenizer, losses, folder)
    return folder, before, tokenizer, losses


def test_shipped_folder_loads_as_16_bit_weights_close_to_those_that_were_trained(shipped):
    folder, trained, tokenizer, _ = shipped
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert {p.dtype for p in loaded.parameters()} == {torch.float16}
    assert torch.equal(weights(loaded), trained.half())
    assert torch.allclose(weights(loaded).float(), trained, atol=1e-4, rtol=1e-3)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()
    assert {path.name for path in folder.iterdir()} >= {"model.safetensors", "README.md", "loss.csv", "tokenizer.json"}
    assert not (folder / "old.bin").exists()


def test_shipped_folder_serves_a_run_as_its_base(shipped, small, monkeypatch):
    folder, trained, _, _ = shipped
    monkeypatch.setattr(base_model, "SHIPPED", folder)
    model, _ = base_model.prepare(with_lab(small, pretrained=True))
    assert torch.equal(weights(model), trained.half().float())


def test_shipping_leaves_a_model_in_float32(small, checkpoint, tmp_path):
    model, tokenizer, losses = pretraining.pretrain(small, checkpoint)
    pretraining.ship(small, model, tokenizer, losses, tmp_path / "shipped")
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_card_of_the_shipped_base_says_how_it_was_made(shipped, small):
    folder, trained, _, losses = shipped
    card = (folder / "README.md").read_text(encoding="utf-8")
    last = losses.iloc[-1]
    assert f"with seed {small.seed}:" in card
    assert f"{STEPS} steps" in card and f"{STEPS * 4 * 64:,} tokens" in card and "300 documents" in card
    assert f"{len(trained):,} parameters" in card
    assert f"is {last.validation_loss:.3f} nats" in card
    assert f"perplexity of {np.exp(last.validation_loss):.2f};" in card
    for name, value in (vars(small.lab) | SETTINGS).items():
        assert (f"| {name} | {value} |" in card) == (name not in ("pairs", "pretrained", "pretraining")), name
    assert f"| learning_rate | {small.lab.pretraining.learning_rate} |" in card
    assert not re.search(r"[{}]", card) and str(folder.parent) not in card


def test_shipped_losses_are_those_of_the_run_to_four_digits(shipped):
    folder, _, _, losses = shipped
    pd.testing.assert_frame_equal(pd.read_csv(folder / "loss.csv"), losses, check_dtype=False, atol=6e-5, rtol=0)


@pytest.fixture
def script(small, tmp_path):
    """scripts/pretrain.py, which would train the lab's base for hours, set to the small one and another folder."""
    main = stage_module("scripts/pretrain.py")["main"]
    main.__wrapped__.__globals__["load_profile"] = lambda name: {"lab": small}[name]
    main.__wrapped__.__globals__["set_up"] = lambda profile: None
    main.__wrapped__.__globals__["SHIPPED"] = tmp_path / "shipped"
    return main


def test_script_pretrains_and_ships(script, checkpoint, tmp_path, capsys):
    assert script() == 0
    assert f"{STEPS}  " in capsys.readouterr().out
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["losses"][-1]["step"] == STEPS
    shipped, kept = (AutoModelForCausalLM.from_pretrained(path).float() for path in (tmp_path / "shipped", checkpoint))
    assert torch.equal(weights(shipped), weights(kept).half().float())


def test_script_says_why_it_cannot_go_on_and_ships_nothing(script, small, checkpoint, tmp_path, capsys):
    pretraining.pretrain(dataclasses.replace(small, seed=5), checkpoint)
    assert script() == 2
    assert "error:" in (said := capsys.readouterr().err) and "other settings" in said
    assert not (tmp_path / "shipped").exists()
