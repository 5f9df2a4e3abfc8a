"""How many answers a second PPO trains on, the project's trainer against TRL 1.12.0's, for whole updates.

python benchmarks/ppo.py                      # the lab's shape: the trained models of the lab profile
python benchmarks/ppo.py --gpt2 TOKENIZER     # GPT-2's shape (124M) at random weights; a local folder or a Hub name

Both trainers live in one process and take turns, update by update, with equal models, prompts, batch, lengths and
passes, so that what slows the machine slows both. What counts is the median of the ratios of such pairs.
"""

import argparse
import os
import statistics
import tempfile
from dataclasses import replace

from rlhf import data, models, outputs, runtime
from rlhf.generation import encode_prompts
from rlhf.ppo import trl as trl_stage
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer
from rlhf.profiles import load_profile, set_up
from rlhf.reward import scoring

from datasets import Dataset
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer, TrainerCallback

# As published: 16 prompts an update, four passes; longer answers would only take longer.
GPT2 = Settings(
    updates=1, batch_size=16, micro_batch_size=8, mini_batches=1, epochs=4, max_new_tokens=32, learning_rate=1.41e-5
)


class Turns(TrainerCallback):
    """After each of TRL's updates: note its seconds, then let the other trainer have its turn."""

    def __init__(self, other: PPOTrainer):
        self.other, self.theirs, self.ours = other, [], []

    def on_train_begin(self, *_, **__):
        self.started = runtime.clock()

    def on_step_end(self, *_, **__):
        self.theirs.append(runtime.clock() - self.started)
        started = runtime.clock()
        self.other.step()
        self.started = runtime.clock()
        self.ours.append(self.started - started)
        if len(self.ours) == 1:  # the first pair allocates and chooses kernels: it does not count
            self.other.seconds = dict.fromkeys(self.other.seconds, 0.0)


def lab_models(profile) -> list:
    """Policy, reference, reward model and value model of the lab run."""
    policies = [models.load_policy(profile, "sft_full") for _ in range(2)]
    return policies + [models.load_reward_model(profile) for _ in range(2)]


def gpt2_models(tokenizer) -> list:
    """The same four of GPT-2's shape; each call gives equal ones."""
    found = []
    for kind in (GPT2LMHeadModel, GPT2LMHeadModel, GPT2ForSequenceClassification, GPT2ForSequenceClassification):
        with runtime.isolated_generator(0):
            model = kind(GPT2Config(num_labels=1))
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.pad_token_id = tokenizer.pad_token_id
        found.append(model.to(runtime.device()).eval())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", metavar="TOKENIZER", help="GPT-2's shape with this tokenizer")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of updates that count; one more is run")
    options = parser.parse_args()
    profile = load_profile("lab")
    set_up(profile)
    if options.gpt2:
        tokenizer = GPT2Tokenizer.from_pretrained(options.gpt2, model_max_length=1024)
        tokenizer.add_special_tokens({"pad_token": models.PAD})
        settings, prompts = GPT2, list(data.load_preferences(profile)["train"]["prompt"])[:512]
    else:
        tokenizer = models.load_tokenizer(profile)
        settings = Settings(**outputs.read_json(profile, "run.json")["ppo"])
        prompts = data.training_prompts(profile, tokenizer, settings.max_prompt_tokens)
    settings = replace(settings, updates=options.pairs + 1, warmup_updates=0)
    ours, theirs = (gpt2_models(tokenizer) if options.gpt2 else lab_models(profile) for _ in range(2))
    policy, reference, reward_model, _ = ours
    mine = PPOTrainer(
        policy, reference, lambda *texts: scoring.score(reward_model, tokenizer, *texts), tokenizer, prompts, settings
    )
    ids = encode_prompts(tokenizer, prompts)
    with tempfile.TemporaryDirectory() as folder:
        trl = trl_stage.make_trainer(profile, settings, *theirs, tokenizer, Dataset.from_dict({"input_ids": ids}))
        os.environ["TENSORBOARD_LOGGING_DIR"] = trl.args.output_dir = folder
        trl.args.local_rollout_forward_batch_size = settings.batch_size  # ours too answers all at once
        turns = Turns(mine)
        trl.add_callback(turns)
        trl.train()
    print(f"{settings.batch_size} answers an update, {options.pairs} pairs, {runtime.hardware()}")
    for name, seconds in (("ours", turns.ours[1:]), ("TRL", turns.theirs[1:])):
        each = statistics.median(seconds)
        print(f"{name:>5}: {settings.batch_size / each:.2f} answers/s, {each:.2f} s an update")
    shares = {part: seconds / sum(turns.ours[1:]) for part, seconds in mine.seconds.items()}
    print(f"       ours: {', '.join(f'{part} {share:.0%}' for part, share in shares.items())}")
    ratios = [theirs / ours for ours, theirs in zip(turns.ours[1:], turns.theirs[1:], strict=True)]
    print(f"TRL's seconds / ours: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
