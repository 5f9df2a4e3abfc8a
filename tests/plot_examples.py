"""What the tests of the plots share: arguments for every figure, and what a figure shows."""

import functools
import io

from rlhf import plots
from rlhf.evaluation.probes import PROBES
from rlhf.lab.gold import WEIGHTS
from rlhf.metrics import SUMMARY_COLUMNS, calibration
from rlhf.ppo.monitor import LIMITS
from rlhf.studies import troubleshooting
from rlhf.studies.faults import FAULTS

import numpy as np
import pandas as pd
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

COMPARED = ["base", "sft_qlora", "sft_full", "ppo"]


def histogram(values, edges, column: str) -> pd.DataFrame:
    """Left edge and count of each bin that is not empty."""
    counts, edges = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    frame = pd.DataFrame({column: edges[:-1], "count": counts})
    return frame[frame["count"] > 0]


def summary(means: dict[str, list[float]], models: list[str], half_width: float) -> pd.DataFrame:
    rows = [
        (model, metric, mean, mean - half_width, mean + half_width, 300)
        for metric, values in means.items()
        for model, mean in zip(models, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def ratio_frame() -> pd.DataFrame:
    ways = {"ours": (1, 1, 1), "published": (5.2, 4.9, 5.6), "trl": (1.4, 1.3, 1.6)}
    rows = [(stage, way, *ratios) for stage in ("reward", "sft", "ppo") for way, ratios in ways.items()]
    return pd.DataFrame(rows, columns=["stage", "way", "ratio", "ratio_low", "ratio_high"])


def growth_frame() -> pd.DataFrame:
    axes = {"texts": (16, 32, 64), "tokens": (128, 512, 1024), "parameters": (3e6, 124e6, 355e6, 7e9)}
    rows = [(axis, value, value * 1e-2, value**0.9, 1.0, 0.9, value == 7e9) for axis in axes for value in axes[axis]]
    measures = ["seconds", "memory_mb", "seconds_exponent", "memory_mb_exponent"]
    return pd.DataFrame(rows, columns=["axis", "value", *measures, "reckoned"])


def example_frames() -> dict[str, tuple]:
    """Arguments of every figure: made up, but of the size and shape that a run gives."""
    random = np.random.default_rng(0)
    rouge_names = ["rouge1", "rouge2", "rougeL"]
    rouge = summary(
        {"rouge1": [0.19, 0.43, 0.47, 0.49], "rouge2": [0.04, 0.2, 0.24, 0.25], "rougeL": [0.14, 0.33, 0.37, 0.38]},
        COMPARED,
        0.012,
    )
    published = pd.DataFrame(
        [
            ("base", [0.1793, 0.0492, 0.1444]),
            ("sft_full", [0.3534, 0.1487, 0.2622]),
            ("sft_qlora", [0.3117, 0.126, 0.2405]),
            ("ppo", [0.3365, 0.139, 0.2515]),
        ],
        columns=["model", "value"],
    ).explode("value")
    published = published.astype({"value": float}).assign(metric=rouge_names * 4)
    parts = {part: random.normal(weight / 2, 0.15, 4) for part, weight in WEIGHTS.items()}
    return {
        "benchmark_ratios": (ratio_frame(),),
        "growth": (growth_frame(),),
        "token_lengths": (token_length_frame(random),),
        "learning_rates": (
            pd.DataFrame(
                {
                    "method": ["full"] * 3 + ["qlora"] * 3,
                    "learning_rate": [3e-4, 1e-3, 3e-3, 1e-3, 3e-3, 1e-2],
                    "validation_loss": [1.61, 1.43, 1.72, 1.66, 1.52, 1.58],
                }
            ),
        ),
        "loss_curves": (loss_curve_frame(random),),
        "cost_bars": (
            pd.DataFrame(
                [
                    ("full", 124_439_808, 498.0, 2210.0, 0.412),
                    ("lora", 2_359_296, 507.0, 1480.0, 0.345),
                    ("qlora", 2_359_296, 168.4, 1120.0, 0.502),
                ],
                columns=["method", "trainable_parameters", "weight_megabytes", "memory_megabytes", "seconds_per_step"],
            ),
        ),
        "stop_and_length": stop_frames(random),
        "model_metrics": (rouge, rouge_names, "ROUGE on the test prompts, beam search", "mean F-measure"),
        "published_beside": (rouge, published),
        "error_kinds": (error_frame(random),),
        "length_difference": (histogram(random.normal(3, 22, 600).round(), np.arange(-80, 82), "difference"),),
        "reward_curve": (reward_curve_frame(random),),
        "calibration": (calibration(random.normal(2, 2.2, 600)),),
        "accuracy_slices": (slice_frame(random), 0.842),
        "margins": (margin_frame(random),),
        "monitored": (
            pd.concat([ppo_frame(random).assign(model=m) for m in ("ppo_seed_0", "ppo_collapsed")]),
            "PPO with two seeds, and what the monitor watches",
        ),
        "ppo_curves": (pd.concat([ppo_frame(random).assign(model=m) for m in ("ppo", "ppo_scratch")]),),
        "answer_tokens": (answer_frame(random),),
        "clipped_objective": (objective_frame(), 0.2),
        "kl_estimators": (pd.DataFrame({"k1": random.normal(2, 3, 300), "k3": random.gamma(2, 1, 300)}),),
        "gold_parts": (pd.concat([summary({"gold": [0, 2, 3, 4]}, COMPARED, 0.1), summary(parts, COMPARED, 0.06)]),),
        "paired": (paired_frame(random),),
        "reward_against_gold": (proxy_frame(random),),
        "reward_probes": (probe_frame(random),),
        "overoptimisation": study_frames(random),
        "best_of_n": study_frames(random),
        "ensemble_curves": (ensemble_frame(random),),
        "laws": law_frames(random),
        "accuracy_and_gain": (gain_frame(random),),
        "relevance": (relevance_frame(random),),
        "data_size": (data_size_frame(random), ("off_topic", "wrong_object")),
        "labels": (labels_frame(),),
        "judges": (judge_frame(random),),
        "frontier": (frontier_frame(random),),
        "method_frontier": (method_frame(random),),
        "method_answers": (method_frame(random).query("answers >= 0"),),
        "method_logprobs": (logprob_frame(random),),
        "ppo_data_flow": (),
        "lora_block": (),
        "beside_healthy": (fault_frame(random), "rate_times_ten"),
        "alarms": (alarm_frame(random),),
    }


def token_length_frame(random) -> pd.DataFrame:
    means = {"prompt": (18, 4), "chosen": (66, 14), "rejected": (58, 20)}
    return pd.concat(
        histogram(random.normal(mean, spread, 6000).clip(4), np.arange(0, 160, 4), "tokens").assign(text=text)
        for text, (mean, spread) in means.items()
    )


def loss_curve_frame(random) -> pd.DataFrame:
    rows = []
    for run, floor in (("sft_qlora", 1.05), ("sft_full", 0.9)):
        for step in range(10, 380, 10):
            level = floor + 1.6 * np.exp(-step / 70)
            rows.append((run, "train", step, level + random.normal(0, 0.05)))
            if step % 70 == 0:
                rows.append((run, "validation", step, level + 0.04))
    return pd.DataFrame(rows, columns=["run", "split", "step", "loss"])


def stop_frames(random) -> tuple[pd.DataFrame, pd.DataFrame]:
    stops = pd.DataFrame(
        [
            ("eos", "stop_rate", 0.983, 0.963, 0.997),
            ("none", "stop_rate", 0.0, 0.0, 0.0),
            ("pad_is_eos", "stop_rate", 0.02, 0.007, 0.037),
        ],
        columns=["ending", "metric", "mean", "ci_low", "ci_high"],
    )
    edges = np.arange(0, 104, 4)
    lengths = {"eos": random.normal(55, 14, 300), "none": [96] * 300, "pad_is_eos": [20, 50] * 3 + [96] * 294}
    frame = pd.concat(
        histogram(np.minimum(tokens, 96), edges, "tokens").assign(ending=ending) for ending, tokens in lengths.items()
    )
    return stops, frame


def error_frame(random) -> pd.DataFrame:
    kinds = [
        ("off_topic", 0.15),
        ("wrong_object", 0.15),
        ("wrong_action", 0.13),
        ("rambling", 0.08),
        ("evasive", 0.05),
        ("generic", 0.05),
        ("repetitive", 0.08),
        ("cut_off", 0.07),
        ("fewer_steps", 0.07),
        ("disordered", 0.07),
        ("weaker", 0.1),
    ]
    frame = pd.DataFrame(kinds, columns=["error", "share"])
    return frame.assign(
        length_rule=random.uniform(0.2, 0.9, len(frame)), gold_agreement=random.uniform(0.85, 1, len(frame))
    )


def reward_curve_frame(random) -> pd.DataFrame:
    rows = []
    for step in range(5, 190, 5):
        level = np.exp(-step / 60)
        rows.append(
            ("train", step, 0.35 + 0.36 * level + random.normal(0, 0.04), 0.86 - 0.36 * level - 0.03 * (step % 3))
        )
        if step % 35 == 0:
            rows.append(("validation", step, 0.37 + 0.34 * level, 0.85 - 0.33 * level))
    return pd.DataFrame(rows, columns=["split", "step", "loss", "accuracy"])


def slice_frame(random) -> pd.DataFrame:
    names = [*error_frame(random).error, "chosen_longer", "equal_length", "chosen_shorter"]
    means = random.uniform(0.6, 0.98, len(names))
    return pd.DataFrame(
        {
            "slice": names,
            "mean": means,
            "ci_low": means - 0.06,
            "ci_high": np.minimum(means + 0.05, 1),
            "n": random.integers(20, 90, len(names)),
        }
    )


def margin_frame(random) -> pd.DataFrame:
    frame = histogram(random.normal(2, 2.2, 600), np.linspace(-8, 10, 37), "margin")
    return frame.assign(correct=frame.margin >= 0)


def ppo_frame(random) -> pd.DataFrame:
    time = np.arange(1, 25) / 24
    kl = 9 * time + random.normal(0, 0.3, 24)
    reward = 1 + 2.2 * (1 - np.exp(-3 * time)) + random.normal(0, 0.2, 24)
    return pd.DataFrame(
        {
            "episode": 64 * np.arange(1, 25),
            "reward": reward,
            "kl": kl,
            "reward_minus_kl": reward - 0.1 * kl,
            "entropy": 1.1 - 0.5 * time + random.normal(0, 0.02, 24),
            "value_loss": 1.5 * np.exp(-4 * time) + random.uniform(0, 0.1, 24),
            "clip_fraction": random.uniform(0.02, 0.12, 24),
            "response_length": 58 + 8 * time + random.normal(0, 1.5, 24),
            "stop_rate": np.minimum(0.95 + 0.06 * time + random.normal(0, 0.01, 24), 1),
            "explained_variance": 0.5 * time - 0.1 + random.normal(0, 0.03, 24),
            "distinct_2": 0.8 - 0.1 * time,
            "reward_std": 0.9 - 0.2 * time + random.normal(0, 0.03, 24),
            "repetition": 0.02 + 0.02 * time,
        }
    )


def objective_frame() -> pd.DataFrame:
    rows = []
    for advantage in (1, -1):
        for ratio in np.linspace(0.5, 1.5, 41):
            clipped = min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
            rows.append((advantage, ratio, ratio * advantage, clipped))
    return pd.DataFrame(rows, columns=["advantage", "ratio", "unclipped", "clipped"])


def answer_frame(random) -> pd.DataFrame:
    tokens = ["First", ",", "·salt", "·the", "·$5", "·$6", "·steak", ".", "\\n", "<|endoftext|>"]
    log_ratio = random.normal(0.05, 0.3, len(tokens))
    reward = -0.1 * log_ratio + np.eye(len(tokens))[-1]
    advantage = reward[::-1].cumsum()[::-1] - 0.4
    columns = {"token": tokens, "log_ratio": log_ratio, "kl_penalty": -0.1 * log_ratio, "reward": reward}
    return pd.DataFrame(columns | {"advantage": advantage})


def paired_frame(random) -> pd.DataFrame:
    scales = {"reward": 1, "gold": 1.5, "rouge1": 0.05, "stop_rate": 0.03, "kl": 6}
    rows = []
    for metric, scale in scales.items():
        for model, against in (("ppo", "sft_full"), ("sft_full", "sft_qlora"), ("sft_full", "base")):
            difference = scale * random.uniform(-0.2, 1)
            interval = (difference - 0.15 * scale, difference + 0.15 * scale)
            rows.append((model, against, metric, difference, *interval, 300))
    columns = ["model", "against", "metric", "difference", "ci_low", "ci_high", "n"]
    return pd.DataFrame(rows, columns=columns)


def study_frames(random) -> tuple[pd.DataFrame, pd.DataFrame]:
    """overoptimisation.csv and turning_points.csv of two seeds: gold turns down at update 12 where KL is cheap."""
    rows, turns = [], []
    for seed in (0, 1):
        for price, setting in ((1, "kl_coef 0.3, all pairs"), (9, "kl_coef 0, all pairs")):
            for x in range(0, 61, 6):
                gold = 2.8 + 0.06 * x - 0.0025 * price * max(0, x - 12)
                noise = random.normal(0, 0.05, 3)
                row = (x, price * x / 10, 0.02 * x + noise[0], 0.015 * x + noise[1], gold + noise[2], 2.1)
                rows.append((seed, "ppo", setting, *row))
            turns.append((seed, "ppo", setting, "gold", 12, 60, price > 1))
        turns.append((seed, "best_of_n", "all pairs", "gold", 16, 64, seed == 1))
        for n in (1, 2, 4, 8, 16, 32, 64):
            rows.append((seed, "best_of_n", "all pairs", n, np.log(n), np.log2(n) / 3, np.log2(n) / 4, 3 + n / 64, 2.1))
    columns = ["seed", "method", "setting", "x", "kl", "proxy", "judge", "gold", "gold_unit"]
    turn_columns = ["seed", "method", "setting", "by", "peak_x", "end_x", "found"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(turns, columns=turn_columns)


def ensemble_frame(random) -> pd.DataFrame:
    """ensembles.csv of two seeds: the worst case falls least."""
    rows = []
    for seed in (0, 1):
        for fall, setting in enumerate(("worst_case", "uncertainty_weighted", "mean", "single")):
            for x, n in enumerate((1, 2, 4, 8, 16, 32, 64)):
                kl = np.log(n) - (n - 1) / n
                rows.append((seed, "best_of_n", setting, n, kl, 0.3 * x, 5 + 0.3 * x - 0.02 * fall * x, 2.2))
            for x in range(11):
                gold = 5 + 0.1 * x - 0.03 * (fall + 1) * x + random.normal(0, 0.03)
                rows.append((seed, "ppo", setting, x, 0.3 * x**2, 0.12 * x, gold, 2.2))
    columns = ["seed", "method", "setting", "x", "kl", "proxy", "gold", "gold_unit"]
    return pd.DataFrame(rows, columns=columns)


def law_frames(random) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves of PPO at two settings that follow the law but for noise, and the fits: one has no peak."""
    rows, fits = [], []
    for seed in (0, 1, 2):
        for beta, setting in ((0.2, "kl_coef 0.1, all pairs"), (0.4, "kl_coef 0, 1/4 of pairs")):
            for x in range(6):
                d = 1.1 * x
                gold = d * (0.2 - beta * np.log(max(d, 1e-9))) + random.normal(0, 0.05)
                rows.append((seed, "ppo", setting, x, d**2, 5 + 2.2 * gold, 2.2))
            fits.append(("ppo", setting, seed, 0.2, beta, 0.1, np.inf if seed == 2 else 0.9))
    curves = pd.DataFrame(rows, columns=["seed", "method", "setting", "x", "kl", "gold", "gold_unit"])
    columns = ["method", "setting", "seed", "alpha", "beta", "peak_kl_low", "peak_kl_high"]
    return curves, pd.DataFrame(fits, columns=columns)


def gain_frame(random) -> pd.DataFrame:
    """A row for each reward model, seed and way to optimise, as studies.reward_models.accuracy_and_gain gives them."""
    ways = {"PPO as in the run": 0.6, "PPO pushed, kl_coef 0.1": -1.5, "best of 64": 0.9}
    accuracies = {"eighth": 0.65, "quarter": 0.75, "half": 0.8, "seeing": 0.86, "blind": 0.7}
    rows = [
        (way, seed, name, gain + random.normal(0, 0.1), accuracy + random.normal(0, 0.02))
        for way, gain in ways.items()
        for name, accuracy in accuracies.items()
        for seed in (0, 1, 2)
    ]
    return pd.DataFrame(rows, columns=["optimised", "seed", "reward_model", "gold", "accuracy"])


def relevance_frame(random) -> pd.DataFrame:
    rows = []
    for seed in (0, 1, 2):
        for model, level in (("blind", 0.5), ("seeing", 0.95)):
            values = {"accuracy": level - 0.1, "accuracy off_topic": level, "accuracy wrong_object": level}
            values |= {"reward": 0.5, "gold": level - 0.4, "relevance": level / 4}
            for metric, value in values.items():
                mean = value + random.normal(0, 0.02)
                rows.append((seed, model, metric, mean, mean - 0.1, mean + 0.1))
    return pd.DataFrame(rows, columns=["seed", "reward_model", "metric", "mean", "ci_low", "ci_high"])


def data_size_frame(random) -> pd.DataFrame:
    rows = [
        (seed, pairs, name, 0.6 + 0.1 * i + random.normal(0, 0.01))
        for seed in (0, 1)
        for i, pairs in enumerate((1000, 2000, 4000, 8000))
        for name in ("all", "off_topic", "wrong_object", "repetitive")
    ]
    return pd.DataFrame(rows, columns=["seed", "pairs", "slice", "accuracy"])


def labels_frame() -> pd.DataFrame:
    """labels.csv of two seeds, near each other; the corpus alone has all labels."""
    sizes = {"corpus": (500, 1000, 2000, 8000), "on_policy": (500, 1000, 2000), "both": (500, 1000, 2000)}
    rows = [
        (seed, arm, labels, metric, low + high * np.log2(labels / 250) * (1 + place / 4) + (seed - 0.5) / 20)
        for seed in (0, 1)
        for place, (arm, of) in enumerate((sizes | {"active": (1000, 2000)}).items())
        for labels in of
        for metric, low, high in (("gold", 0.1, 0.15), ("accuracy_on_policy", 0.5, 0.05), ("kl", 1.0, 0.2))
    ]
    return pd.DataFrame(rows, columns=["seed", "arm", "labels", "metric", "mean"])


def judge_frame(random) -> pd.DataFrame:
    rows = [
        (seed, model, metric, random.uniform(0.2, 0.8))
        for seed in (0, 1)
        for model in ("base", "ppo", "ppo_half")
        for metric in ("win_by_proxy", "win_by_judge", "win_by_gold", "judge_agrees")
    ]
    return pd.DataFrame(rows, columns=["seed", "model", "metric", "mean"])


def frontier_frame(random) -> pd.DataFrame:
    kl = {"base": 35, "sft_full": 0, "ppo": 2, "best of 4": 0.6, "best of 16": 1.8, "best of 64": 3.2}
    rows = [
        (seed, model, metric, value + random.normal(0, 0.02))
        for seed in (0, 1)
        for model, distance in kl.items()
        for metric, value in (("kl_from_sft", distance + 0.1), ("reward", distance / 4), ("gold", 3 - distance / 9))
    ]
    rows += [(seed, "reference", "gold", 4 + seed) for seed in (0, 1)]
    return pd.DataFrame(rows, columns=["seed", "model", "metric", "mean"])


def method_frame(random) -> pd.DataFrame:
    """beyond_frontier.csv with the column answers of beyond_answers.csv; -1 for methods that sample none."""
    methods = {"ppo_scratch": 1.6, "rloo": 1.3, "grpo": 1.1, "rejection": 0.8, "online_dpo": 1.5, "dpo": 6, "ipo": 4}
    rows = []
    for seed in (0, 1, 2):
        for i, (method, most) in enumerate(methods.items()):
            for step in range(4):
                kl = most * (4 - step) / 4
                gold = 0.8 * np.sqrt(kl) - 0.02 * i * kl**1.5 + random.normal(0, 0.06)
                answers = -1 if method in ("dpo", "ipo") else 320 * (4 - step)
                rows.append((seed, method, 0.1 * 3**step, step == 1, kl, gold / 2, gold, answers))
        for n in (1, 2, 4, 8, 16):
            kl = np.log(n) - (n - 1) / n
            rows.append((seed, "best_of_n", n, False, kl, np.sqrt(kl), np.sqrt(kl) + random.normal(0, 0.04), -1))
    table = pd.DataFrame(rows, columns=["seed", "method", "value", "chosen", "kl", "reward", "gold", "answers"])
    ends = {"low": -0.2, "high": 0.2}
    return table.assign(**{f"{of}_ci_{end}": table[of] + by for of in ("reward", "gold") for end, by in ends.items()})


def logprob_frame(random) -> pd.DataFrame:
    changes = {"ppo_scratch": (-3, -6), "rloo": (-2, -5), "grpo": (-2, -4), "rejection": (-1, -3), "dpo": (-15, -60)}
    rows = [
        (seed, method, side, mean + random.normal(0, 0.5))
        for seed in (0, 1, 2)
        for method, means in changes.items()
        for side, mean in zip(("chosen", "rejected"), means, strict=True)
    ]
    return pd.DataFrame(rows, columns=["seed", "method", "side", "change"])


def fault_frame(random) -> pd.DataFrame:
    """troubleshooting.csv of five healthy runs and one whose KL runs away."""
    runs = [("healthy", seed) for seed in range(1, 6)] + [("rate_times_ten", 0)]
    curves = [
        ppo_frame(random).head(10).assign(fault=fault, seed=seed, update=range(1, 11), gold=random.normal(5, 0.1, 10))
        for fault, seed in runs
    ]
    curves[-1]["kl"] = 4 * curves[-1].kl + 8
    first = ["fault", "seed", "update"]
    return pd.concat(curves).set_index(first).reset_index()


def alarm_frame(random) -> pd.DataFrame:
    """troubleshooting_alarms.csv: two measures of each watch stay silent, and one healthy run of five is warned of."""
    measures = {"monitor": list(LIMITS), "band": list(troubleshooting.COMPARED)}
    rows = []
    for fault, seed in [("healthy", seed) for seed in range(1, 6)] + [(fault, 0) for fault in FAULTS]:
        for watch, names in measures.items():
            for name in names:
                silent = name in ("repetition", "entropy") or (fault == "healthy" and (seed > 1 or name != "kl"))
                rows.append((fault, seed, watch, name, None if silent else int(random.integers(3, 11)), None))
    columns = ["fault", "seed", "watch", "measure", "first_update", "side"]
    return pd.DataFrame(rows, columns=columns).astype({"first_update": "Int64"})


def probe_frame(random) -> pd.DataFrame:
    reward = random.normal(0, 2, len(PROBES))
    names = [name for name, *_ in PROBES]
    frame = pd.DataFrame({"probe": names, "reward": reward, "ci_low": reward - 0.2, "ci_high": reward + 0.2})
    return frame.assign(beats_chosen=np.linspace(0.5, 0, len(names)))


def proxy_frame(random) -> pd.DataFrame:
    rows = []
    for model, shift in (("sft_full", 0), ("ppo", 1.2)):
        gold = np.round((random.normal(3.5 + shift, 1.6, 300)).clip(-4, 7.5) * 4) / 4
        rows.append(pd.DataFrame({"model": model, "gold": gold, "reward": 0.7 * gold - 1 + random.normal(0, 1, 300)}))
    return pd.concat(rows)


EXAMPLES = example_frames()


def draw(name: str, *arguments) -> Figure:
    return getattr(plots, name)(*arguments)


@functools.cache
def example(name: str) -> Figure:
    return draw(name, *EXAMPLES[name])


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def with_rows(arguments: tuple, change) -> tuple:
    return tuple(change(value) if isinstance(value, pd.DataFrame) else value for value in arguments)


def panels(figure: Figure) -> list:
    return list(figure.axes)


def all_texts(figure: Figure) -> list:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def intervals(axes) -> dict[str, tuple]:
    """Points (x, y) of each labelled errorbar and the ends of its intervals, (n, 2)."""
    found = {}
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer):
            line, _, (bars,) = container.lines
            ends = [segment[:, int(container.has_yerr)] for segment in bars.get_segments() if len(segment)]
            found[container.get_label()] = (*np.array(line.get_data(), dtype=float), np.array(ends))
    return found


def lines(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): line.get_ydata() for line in axes.lines if not line.get_label().startswith("_")}


def colours(figure: Figure) -> dict[str, str]:
    """Colour of each label in the figure."""
    found = {}
    for axes in figure.axes:
        for artist, label in zip(*axes.get_legend_handles_labels(), strict=True):
            line = artist.lines[0] if isinstance(artist, ErrorbarContainer) else artist
            found[label] = line.get_color()
    return found
