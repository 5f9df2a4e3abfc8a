"""What the trainers of all stages share: the learning rate of each step, the device, the adapters."""

from rlhf import training
from rlhf.training import lora_config, lr_scale, run_arguments

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel


def test_warm_up_rises_in_equal_parts_from_its_first_step_and_reaches_one():
    assert [lr_scale(step, 4) for step in range(7)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert lr_scale(0, 0) == 1.0


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 2), (2, 10), (10, 400), (1, 5)])
def test_with_a_last_step_the_rate_falls_and_no_step_has_rate_zero(warmup, total):
    shares = [lr_scale(step, warmup, total) for step in range(total)]
    assert max(shares) == shares[warmup] == 1.0
    assert all(share > 0 for share in shares)
    assert shares[warmup:] == sorted(shares[warmup:], reverse=True)
    assert lr_scale(total, warmup, total) == pytest.approx(0, abs=1e-12)  # the step after the last


def test_cosine_is_at_half_in_the_middle():
    assert lr_scale(15, 10, 20) == pytest.approx(0.5)


def test_several_visible_gpus_are_refused_because_the_trainer_would_multiply_the_batch(profile, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match=r"2 GPUs are visible.*CUDA_VISIBLE_DEVICES=0"):
        run_arguments(profile, "run")


def test_run_arguments_keep_no_checkpoints_of_transformers_and_log_below_the_outputs(profile, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    arguments = run_arguments(profile, "sft_full")
    assert arguments["save_strategy"] == "no" and arguments["seed"] == profile.seed
    assert arguments["output_dir"].endswith("outputs/checkpoints/smoke/training/sft_full")
    assert training.os.environ["TENSORBOARD_LOGGING_DIR"].endswith("outputs/logs/smoke/sft_full")


def test_adapter_has_the_rank_scale_and_layers_of_the_settings(profile):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=16))
    config = lora_config(profile.reward.lora, "SEQ_CLS", model, modules_to_save=["score"])
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.0)
    assert config.target_modules == {"c_attn", "c_proj", "c_fc"} and config.modules_to_save == ["score"]
