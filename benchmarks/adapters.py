"""Memory of PPO on adapters that share one frozen 4-bit base, against PPO on whole models, with TRL's four models.

python benchmarks/adapters.py MODEL       # a Hub name, a local folder, or smollm2

Each way runs in a process of its own, from an untrained adapter and an untrained head: one update of 16 answers. What
a model of 7B needs is reckoned from the counts of its weights (those of Mistral-7B), not measured.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rlhf import models, outputs, registry, runtime, sft
from rlhf.generation import encode_prompts
from rlhf.ppo import trl
from rlhf.ppo.settings import Settings
from rlhf.profiles import load_profile, set_up
from rlhf.reward.training import make_trainer
from rlhf.training import lora_config

import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, MistralConfig

PPO = Settings(1, 16, 4, 1, 1, 1e-5, max_new_tokens=32)
PROMPTS = [f"Write {n} sentences about the sea and the people who live beside it." for n in range(2, 18)]
LARGE = "1e9"  # gigabytes: whole models fit


def peak_gb() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return runtime.peak_memory_mb(os.getpid()) / 1e3


def forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # what loading took


def start(profile, tokenizer) -> None:
    """The checkpoints that PPO starts from: an adapter or the base as SFT policy, and a reward model."""
    base, adapter = sft.start_model(profile, sft.methods(profile)[0])
    policy = get_peft_model(base, adapter) if adapter else base
    outputs.save_checkpoint(profile, registry.MODELS[models.start_key(profile)].checkpoint, policy, tokenizer)
    pairs = Dataset.from_dict({f"{side}_ids": [[1, 2, 3]] * 4 for side in ("chosen", "rejected")})
    trainer = make_trainer(profile, models.new_reward_model(profile, 0), tokenizer, pairs, pairs)
    outputs.save_checkpoint(profile, "reward_model_final", trainer.model, tokenizer)


def measure(profile) -> None:
    """One update; prints what the weights take, the peak of the update and its seconds."""
    _, tokenizer = models.prepare_base(profile)
    start(profile, tokenizer)
    policy, reference = (models.load_policy(profile, models.start_key(profile)) for _ in range(2))
    four = policy, reference, models.load_reward_model(profile), models.new_value_model(profile)
    weights = {weight.data_ptr(): weight.nbytes for model in four for weight in model.parameters()}
    prompts = Dataset.from_dict({"input_ids": encode_prompts(tokenizer, PROMPTS)})
    trainer = trl.make_trainer(profile, PPO, *four, tokenizer, prompts)
    forget_peak()
    started = runtime.clock()
    trainer.train()
    seconds, trained = runtime.clock() - started, models.trainable_parameters(policy)
    print(f"{sum(weights.values()) / 1e9:.2f} GB of weights, {trained:,} trained per model, ", end="")
    print(f"peak {peak_gb():.2f} GB, {seconds:.0f} s")


def reckoned(profile) -> str:
    """Weights, gradients and Adam's moments of the four models of a 7B, in GB."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(MistralConfig())
        whole = sum(weight.numel() for weight in model.parameters())
        linear = sum(m.weight.numel() for m in model.model.modules() if type(m) is torch.nn.Linear)
        config = lora_config(profile.sft.lora, "CAUSAL_LM", model)
        adapter = models.trainable_parameters(get_peft_model(model, config))
    # NF4: half a byte, and 0.127 bits for the scales of its blocks; the rest is in float32.
    shared = linear * (0.5 + 0.127 / 8) + (whole - linear) * 4 + adapter * models.BYTES_PER_WEIGHT
    return f"{whole * models.BYTES_PER_WEIGHT / 1e9:.0f} GB whole, {shared / 1e9:.1f} GB by adapters of {adapter:,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # one way's own process
    options = parser.parse_args()
    os.environ |= {"RLHF_MODEL": options.model, "RLHF_PROFILE": "larger", "RLHF_MAX_STEPS": "1"}
    profile = load_profile()
    if options.here:
        set_up(profile)
        measure(profile)
        return
    print(f"{options.model}, 16 answers of 32 tokens, micro-batches of 4, {runtime.hardware()}", flush=True)
    for way, memory in (("whole", LARGE), ("adapters", "0.001")):
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"RLHF_MEMORY_GB": memory, "RLHF_OUTPUTS": folder}
            command = [sys.executable, __file__, options.model, "--here"]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        print(f"{way:>9}: {done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    print(f"       7B: reckoned, without activations: {reckoned(profile)}")


if __name__ == "__main__":
    main()
