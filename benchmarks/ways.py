"""The stages of a run, each in several ways: ours, the published recipe's and TRL's with its defaults.

The published recipe is built anew from its description. What does not change the work is the same for all ways: rows,
start weights, batch and accumulation of a step, precision of the training (16 bit where the machine has bfloat16).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from rlhf import outputs, runtime, sft
from rlhf.adapters import HEAD
from rlhf.generation import encode_prompts, generate_answers, left_padded
from rlhf.ppo import trl as trl_stage
from rlhf.ppo.settings import Settings
from rlhf.ppo.trainer import PPOTrainer
from rlhf.reward import scoring
from rlhf.reward import training as reward_training
from rlhf.reward.pairs import training_pairs
from rlhf.template import format_prompt, format_response
from rlhf.training import lora_config, without_table

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.ppo import ppo_trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from workload import Workload, on_gpu

BEAMS, PENALTY, PUBLISHED_BATCH = 3, 1.2, 16


class Way(NamedTuple):
    """How a stage is run.

    prepare builds what is run, which is not measured, and gives it (measure.take_turn). value is what all ways of a
    stage must agree on: numbers, or the tokens of answers, (answers, tokens).
    """

    prepare: Callable[[], Callable[[], object]]
    value: Callable[[], np.ndarray]


class _Clock(TrainerCallback):
    """The seconds of the steps, without what a trainer sets up before them."""

    def on_train_begin(self, *_, **__):
        self.started = runtime.clock()

    def on_train_end(self, *_, **__):
        self.seconds = runtime.clock() - self.started


def run_of(trainer) -> Callable[[], float]:
    """What trains with a trainer, and gives the seconds of its steps."""
    clock = _Clock()
    _quiet(trainer).add_callback(clock)

    def run() -> float:
        trainer.train()
        return clock.seconds

    return run


def _quiet(trainer):
    trainer.resumes = False
    return without_table(trainer)


def common(load: Workload, settings) -> dict:
    """The arguments that make the trainers of others take the same steps as ours."""
    return {
        "output_dir": str(outputs.training_dir(load.profile) / "others"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "gradient_accumulation_steps": settings.gradient_accumulation,
        "learning_rate": settings.learning_rate if hasattr(settings, "learning_rate") else 2e-5,
        "bf16": runtime.bf16_is_native(),
        "use_cpu": not on_gpu(),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def _of_trainers(makers: dict[str, Callable], value: Callable) -> dict[str, Way]:
    return {
        name: Way(lambda make=make: run_of(make()), lambda make=make: value(_quiet(make())))
        for name, make in makers.items()
    }


def reward_model(load: Workload) -> dict[str, Way]:
    """Training the reward model. Published: every text padded to the context; TRL: recomputed activations."""
    settings, tokenizer = load.profile.reward, load.tokenizer
    prompts, ended = list(load.pairs["prompt"]), [True] * len(load.pairs)
    sides = ("chosen", "rejected")
    rows = {f"{side}_ids": scoring.encode(tokenizer, prompts, list(load.pairs[side]), ended) for side in sides}
    rows = Dataset.from_dict(rows)

    def ours():
        train = training_pairs(load.profile, tokenizer, rows)
        return reward_training.make_trainer(load.profile, load.classifier(), tokenizer, train, rows)

    def others(**options):
        model = load.classifier(published=True)
        adapter = lora_config(settings.lora, "SEQ_CLS", model, modules_to_save=[HEAD])
        config = RewardConfig(**common(load, settings), max_length=None, **options)
        data = {"train_dataset": rows, "eval_dataset": rows}
        return RewardTrainer(model=model, args=config, processing_class=tokenizer, peft_config=adapter, **data)

    padded = partial(others, pad_to_multiple_of=load.shape.context, gradient_checkpointing=False)
    return _of_trainers({"ours": ours, "published": padded, "trl": others}, _scores)


@torch.no_grad()
def _scores(trainer) -> np.ndarray:
    """The scores of the validation pairs as a trainer batches them, in float32."""
    model = trainer.model.eval()
    batches = trainer.get_eval_dataloader()
    found = [trainer.compute_loss(model, batch, return_outputs=True)[1].logits for batch in batches]
    return torch.cat(found).flatten().float().cpu().numpy()


def fine_tuning(load: Workload) -> dict[str, Way]:
    """Full fine-tuning. Published: the loss on prompt and answer, random batches; TRL: recomputed activations."""
    settings, tokenizer = load.profile.sft, load.tokenizer
    examples = {"prompt": [format_prompt(p) for p in load.pairs["prompt"]], "completion": list(load.pairs["chosen"])}
    rows = sft.tokenize(examples, tokenizer)
    everything = Dataset.from_dict({"input_ids": rows["input_ids"], "labels": rows["input_ids"]})

    def ours():
        options = {"learning_rate": 2e-5, "epochs": 1}
        return sft.make_trainer(load.profile, "bench_sft", load.policy(), tokenizer, rows, None, **options)

    def published():
        args = TrainingArguments(**common(load, settings))
        collator = DataCollatorForLanguageModeling(tokenizer.pad_token_id)
        return Trainer(load.policy(published=True), args, train_dataset=everything, data_collator=collator)

    def trl():
        config = SFTConfig(**common(load, settings), max_length=None)
        return SFTTrainer(
            model=load.policy(published=True), args=config, train_dataset=rows, processing_class=tokenizer
        )

    return _of_trainers({"ours": ours, "published": published, "trl": trl}, partial(_loss, rows=rows))


@torch.no_grad()
def _loss(trainer, rows: Dataset) -> np.ndarray:
    """The mean loss of the answers' tokens as a trainer batches them, in float32."""
    model, parts = trainer.model.eval(), []
    for batch in trainer.get_eval_dataloader(rows):
        count = int((batch["labels"][:, 1:] != sft.IGNORED).sum())
        parts.append((count, trainer.compute_loss(model, batch).item()))
    counts, losses = np.array(parts).T
    return np.array([(counts * losses).sum() / counts.sum()])


def scoring_answers(load: Workload) -> dict[str, Way]:
    """Scoring answers. Published: one at a time."""
    model, other, tokenizer = load.classifier(), load.classifier(published=True), load.tokenizer
    prompts, answers = list(load.pairs["prompt"]), list(load.pairs["chosen"])

    def ours() -> np.ndarray:
        return scoring.score(model, tokenizer, prompts, answers, [False] * len(answers))

    @torch.no_grad()
    def published() -> np.ndarray:
        found = []
        for prompt, answer in zip(prompts, answers, strict=True):
            text = format_prompt(prompt) + format_response(answer)
            inputs = tokenizer(text, truncation=True, max_length=load.shape.context, return_tensors="pt")
            ids, mask = (inputs[name].to(other.device) for name in ("input_ids", "attention_mask"))
            found.append(other(input_ids=ids, attention_mask=mask).logits.item())
        return np.array(found)

    return {name: Way(lambda run=run: run, run) for name, run in (("ours", ours), ("published", published))}


def beam_answers(load: Workload) -> dict[str, Way]:
    """Answering test prompts by beam search. Published: batches of 16 in the order of the prompts."""
    model, other = load.policy(), load.policy(published=True)
    tokenizer, count = load.tokenizer, load.shape.beam_tokens
    prompts = list(load.pairs["prompt"])
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    beams = {"max_new_tokens": count, "num_beams": BEAMS, "repetition_penalty": PENALTY}

    def ours() -> np.ndarray:
        size = load.profile.decoding.batch_size
        answers = generate_answers(model, tokenizer, prompts, batch_size=size, **beams)
        return np.array([[*answer.token_ids, *[pad] * count][:count] for answer in answers])

    @torch.no_grad()
    def published() -> np.ndarray:
        found = np.full((len(prompts), count), pad)
        encoded = encode_prompts(tokenizer, prompts)
        for start in range(0, len(prompts), PUBLISHED_BATCH):
            ids, mask = (t.to(other.device) for t in left_padded(encoded[start : start + PUBLISHED_BATCH], pad))
            ends = {"pad_token_id": pad, "eos_token_id": eos}
            tokens = other.generate(input_ids=ids, attention_mask=mask, do_sample=False, **beams, **ends)
            tokens = tokens[:, ids.shape[1] :].cpu().numpy()
            found[start : start + len(tokens), : tokens.shape[1]] = tokens
        return found

    def until_eos(tokens: np.ndarray) -> np.ndarray:
        ended = (tokens == eos).cumsum(axis=1) - (tokens == eos) > 0
        return np.where(ended, pad, tokens)

    ways = (("ours", ours), ("published", published))
    return {name: Way(lambda run=run: run, lambda run=run: until_eos(run())) for name, run in ways}


def ppo_settings(load: Workload) -> Settings:
    """An update of PPO as published: 16 prompts, four passes. On a CPU the answers are shorter."""
    tokens = 150 if on_gpu() else load.shape.ppo_tokens
    sizes = {"batch_size": 16, "micro_batch_size": 8, "mini_batches": 1, "epochs": 4}
    return Settings(updates=1, max_new_tokens=tokens, learning_rate=1.41e-5, **sizes)


def ppo_trainer_of(load: Workload, policy=None, reference=None) -> PPOTrainer:
    """The project's trainer with a policy, a reference and a reward model."""
    score, prompts = partial(scoring.score, load.classifier(), load.tokenizer), list(load.pairs["prompt"])
    policy, reference = policy or load.policy(), reference or load.policy()
    return PPOTrainer(policy, reference, score, load.tokenizer, prompts, ppo_settings(load))


def ppo(load: Workload) -> dict[str, Way]:
    """An update of PPO. Published: forward and backward one answer at a time; TRL with our batches.

    Ours reads the values off the policy's trunk; the others have a value model of their own. What must agree are the
    log-probabilities of the same answers.
    """
    settings, tokenizer, pad = ppo_settings(load), load.tokenizer, load.tokenizer.pad_token_id

    def others(size: int):
        prompts = Dataset.from_dict({"input_ids": encode_prompts(tokenizer, list(load.pairs["prompt"]))})
        its = Settings(**settings.__dict__ | {"micro_batch_size": size})
        four = [make(published=True) for make in (load.policy, load.policy, load.classifier, load.classifier)]
        trainer = trl_stage.make_trainer(load.profile, its, *four, tokenizer, prompts)
        trainer.args.local_rollout_forward_batch_size = settings.batch_size  # ours too answers all at once
        return run_of(trainer)

    def in_means(rollout, logprobs) -> np.ndarray:
        """The mean log-probability of each answer's tokens; without answers that have the pad token as a word."""
        whole = ~((rollout.responses == pad) & rollout.mask.bool()).any(dim=1)
        means = (logprobs * rollout.mask).sum(dim=1) / rollout.mask.sum(dim=1)
        return means[whole].float().cpu().numpy()

    def our_logprobs() -> np.ndarray:
        trainer = ppo_trainer_of(load)
        rollout = trainer.generate(range(settings.batch_size), "check")
        return in_means(rollout, trainer.compute_logprobs_and_values(rollout)[0])

    @torch.no_grad()
    def their_logprobs() -> np.ndarray:
        """TRL's log-probabilities of our answers."""
        trainer = ppo_trainer_of(load)
        rollout = trainer.generate(range(settings.batch_size), "check")
        tokens = rollout.responses.shape[1]
        logits = ppo_trainer.forward(load.policy(published=True), rollout.sequences, pad).logits[:, -tokens - 1 : -1]
        return in_means(rollout, ppo_trainer.selective_log_softmax(logits, rollout.responses))

    return {
        "ours": Way(lambda: ppo_trainer_of(load).step, our_logprobs),
        "published": Way(lambda: others(1), their_logprobs),
        "trl": Way(lambda: others(settings.micro_batch_size), their_logprobs),
    }


class Stage(NamedTuple):
    ways: Callable[[Workload], dict[str, Way]]
    in_16_bit: bool  # whether its products are in bfloat16 where the machine has it
    tolerance: float  # of what the ways agree on; of answers, the share that may differ by a near tie


STAGES = {
    "reward": Stage(reward_model, True, 1e-4),
    "sft": Stage(fine_tuning, True, 1e-4),
    "scoring": Stage(scoring_answers, False, 1e-4),
    "generation": Stage(beam_answers, False, 0.05),
    # On a GPU ours are under autocast, TRL's are not.
    "ppo": Stage(ppo, on_gpu(), 0.1 if on_gpu() and runtime.bf16_is_native() else 1e-4),
}
