"""How many answers a second PPO trains on, ours against TRL 1.12.0's, for whole updates.

python benchmarks/ppo.py                          # the lab's shape: the trained models of the lab profile
python benchmarks/ppo.py --gpt2 TOKENIZER         # GPT-2's shape (124M) at random weights; a Hub name or a local folder

Both trainers live in one process and take turns, update by update, with equal models, prompts, batch, lengths and
passes, so that what slows the machine slows both. What counts is the median of the ratios of such pairs. `--own-value`
gives ours a second network for the values, as TRL has one.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

from rlhf import models, outputs, rewards
from rlhf.data import load_preferences
from rlhf.profiles import load_profile, set_up

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, TrainerCallback

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
sys.path.insert(0, str(outputs.ROOT / "03_ppo_alignment"))

from trl.experimental.ppo import ppo_trainer as trl_ppo

import ppo
import ppo_trl
from ppo_config import MAX_PROMPT_TOKENS, get_settings
from prepare_data import get_ppo_prompts, training_prompts

PARTS = ("generation", "scoring", "forward", "backward", "optimiser")


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Turns(TrainerCallback):
    """After each of TRL's updates: note its seconds, then let ours have its turn, which is not TRL's time."""

    def __init__(self, turn):
        self.turn, self.seconds = turn, []

    def on_train_begin(self, *_, **__):
        self.started = now()

    def on_step_end(self, *_, **__):
        self.seconds.append(now() - self.started)
        self.turn()
        self.started = now()


def time_parts(trainer) -> dict[str, float]:
    """Seconds that TRL spends in each part from here on, by wrapping the functions that its loop calls."""
    spent = dict.fromkeys(PARTS, 0.0)

    def timed(function, part):
        def run(*args, **kwargs):
            started = now()
            result = function(*args, **kwargs)
            spent["scoring" if part == "forward" and not torch.is_grad_enabled() else part] += now() - started
            return result

        return run

    trl_ppo.batch_generation = timed(trl_ppo.batch_generation, "generation")
    trl_ppo.forward = timed(trl_ppo.forward, "forward")
    trl_ppo.get_reward = timed(trl_ppo.get_reward, "scoring")
    trainer.accelerator.backward = timed(trainer.accelerator.backward, "backward")
    trainer.optimizer.step = timed(trainer.optimizer.step, "optimiser")
    return spent


def matmul_peak(size: int = 2048) -> float:
    """Floating-point operations per second of a square float32 matrix product: the best of ten."""
    a, b = (torch.randn(size, size, device=models.device()) for _ in range(2))
    seconds = []
    for _ in range(10):
        started = now()
        a @ b
        seconds.append(now() - started)
    return 2 * size**3 / min(seconds)


class Bench:
    """Both trainers on equal terms. `only` is the one to build, None for both."""

    def __init__(self, options, folder: str, updates: int, only: str | None = None):
        profile = load_profile("lab")
        set_up(profile)
        self.profile, self.options = profile, options
        settings = replace(get_settings(profile), updates=updates, warmup_updates=0)
        if options.gpt2:  # as published: 16 prompts an update, four passes; longer answers would only take longer
            settings = replace(
                settings,
                batch_size=16,
                micro_batch_size=8,
                mini_batches=1,
                epochs=4,
                max_new_tokens=32,
                temperature=1.0,
            )
            self.tokenizer = AutoTokenizer.from_pretrained(options.gpt2)
            questions = list(load_preferences(profile)["train"]["prompt"])[:512]
            self.config = GPT2Config(num_labels=1)
        else:
            self.tokenizer = models.load_tokenizer(profile)
            questions = training_prompts(profile, self.tokenizer, MAX_PROMPT_TOKENS)
        self.settings = settings
        if only != "TRL":
            policy, reference, reward_model, value_model = self.models()
            self.mine = ppo.PPOTrainer(
                policy,
                reference,
                lambda p, r: rewards.score(reward_model, self.tokenizer, p, r),
                self.tokenizer,
                questions,
                settings,
                value_model=value_model if options.own_value else None,
            )
        if only != "ours":
            ppo_trl.get_settings = lambda _: settings
            prompts = get_ppo_prompts(questions, self.tokenizer)
            self.theirs = ppo_trl.make_trainer(profile, *self.models(), self.tokenizer, prompts)
            os.environ["TENSORBOARD_LOGGING_DIR"] = folder
            self.theirs.args.output_dir = folder
            self.theirs.args.local_rollout_forward_batch_size = settings.batch_size  # ours too answers all at once

    def models(self) -> list:
        """Policy, reference, reward model, value model; each call gives equal ones."""
        if not self.options.gpt2:
            load = (models.load_sft, models.load_sft, models.load_reward_model, models.load_reward_model)
            return [function(self.profile) for function in load]
        found = []
        for kind in (GPT2LMHeadModel, GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForSequenceClassification):
            torch.manual_seed(0)
            model = kind(self.config)
            if kind is GPT2LMHeadModel:
                models.add_pad_token(model, self.tokenizer)
            else:
                model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
                model.config.pad_token_id = self.tokenizer.pad_token_id
            found.append(model.to(models.device()).eval())
        return found


def compare(options) -> None:
    """Run the pairs and print rates, shares of time and of the machine's peak, and the median ratio."""
    alone = {name: measure_alone(options, name) for name in ("ours", "TRL")}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder, updates=options.pairs + 1)
        mine, theirs = bench.mine, bench.theirs
        spent = {"ours": mine.seconds, "TRL": time_parts(theirs)}
        seconds = {"ours": [], "TRL": []}

        def turn():
            started = now()
            mine.step()
            seconds["ours"].append(now() - started)
            if len(seconds["ours"]) == 1:  # the first pair allocates and chooses kernels: it does not count
                for parts in spent.values():
                    parts.update(dict.fromkeys(PARTS, 0.0))

        turns = Turns(turn)
        theirs.add_callback(turns)
        theirs.train()
        seconds = {"ours": seconds["ours"][1:], "TRL": turns.seconds[1:]}
    peak, batch = matmul_peak(), bench.settings.batch_size
    shape = "GPT-2's shape (124M)" if options.gpt2 else "the lab's shape"
    print(f"{shape}, {batch} answers an update, {options.pairs} pairs of updates, {where()}")
    print(f"peak of the matrix product: {peak / 1e9:.0f} GFLOP/s")
    for name, values in seconds.items():
        each, shares = statistics.median(values), {part: spent[name][part] / sum(values) for part in PARTS}
        shares["other"] = 1 - sum(shares.values())
        flops = alone[name]["flops"]
        print(f"{name:>5}: {batch / each:.2f} answers/s, {each:.2f} s an update")
        print(f"       {', '.join(f'{part} {share:.0%}' for part, share in shares.items())}")
        print(f"       {flops / 1e9:.0f} GFLOP an update, {flops / each / peak:.0%} of the peak")
        print(f"       {alone[name]['megabytes']:.0f} MB at most, in a process of its own")
    ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
    print(f"TRL's seconds / ours: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


def where() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads"


def measure_alone(options, name: str) -> dict[str, float]:
    """Peak megabytes of two updates of one trainer, weights included, and the operations of one: in a new process."""
    command = [sys.executable, __file__, "--alone", name]
    command += ["--gpt2", options.gpt2] if options.gpt2 else []
    command += ["--own-value"] if options.own_value else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(options) -> None:
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, folder, updates=2, only=options.alone)
        with FlopCounterMode(display=False) as counter:
            (bench.mine if options.alone == "ours" else bench.theirs).train()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps({"megabytes": peak, "flops": counter.get_total_flops() / 2}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", metavar="TOKENIZER", help="GPT-2's shape with this tokenizer")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of updates that count; one more is run")
    parser.add_argument("--own-value", action="store_true", help="a second network for the values in ours too")
    parser.add_argument("--alone", choices=("ours", "TRL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    alone(options) if options.alone else compare(options)


if __name__ == "__main__":
    main()
