"""The results of a run as tables in Markdown, and the part of README.md that shows those of results/."""

import itertools
import re
from pathlib import Path

from rlhf import outputs, registry
from rlhf.evaluation.published import PUBLISHED
from rlhf.profiles import Profile

import pandas as pd

SHOWN = {"smollm2": "SmolLM2-135M", "minilm": "MiniLM-L6"}  # models out of packages
# The mean score that ash80/RLHF_in_notebooks, as published, has of its sentences before and after PPO.
PUBLISHED_SENTIMENT = (0.072, 0.657)
# Column title, file, metric, digits.
LAB_COLUMNS = ("gold score", "foreign pairs")  # the lab alone knows the truth, and its language
COLUMNS = (
    ("ROUGE-1", "rouge.csv", "rouge1", 3),
    ("ROUGE-2", "rouge.csv", "rouge2", 3),
    ("ROUGE-L", "rouge.csv", "rougeL", 3),
    ("ends by itself", "behaviour.csv", "stop_rate_sample", 2),
    ("reward", "reward.csv", "reward", 2),
    ("gold score", "gold.csv", "gold", 2),
    ("foreign pairs", "behaviour.csv", "foreign_pairs_sample", 3),
    ("KL from SFT", "kl.csv", "kl_from_sft", 1),
)


def _cell(frame: pd.DataFrame, model: str, metric: str, digits: int) -> str:
    row = frame[(frame.model == model) & (frame.metric == metric)].iloc[0]
    return f"{row['mean']:.{digits}f} [{row.ci_low:.{digits}f}, {row.ci_high:.{digits}f}]"


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _as_text(written: str) -> str:
    """What somebody or a model wrote, for a cell of a table: nothing in it is Markdown or HTML."""
    return re.sub(r"([\\`*_\[\]|<>&#~])", r"\\\1", " ".join(written.split()))


def results(profile: Profile, base: Path | None = None) -> str:
    """Tables of a run below `base` (this run's outputs without it): all models, PPO's paired differences, the reward
    model, the seeds, and what was published. Raises FileNotFoundError where the run has not finished."""
    if profile.recipe:
        of = {"RLHF_SST2": _sentiment, "RLHF_ALPACA": _alpaca}[profile.recipe]
        return "\n".join(of(profile, base))
    columns = [column for column in COLUMNS if profile.lab or column[0] not in LAB_COLUMNS]
    files = {name: outputs.read_csv(profile, name, base) for _, name, _, _ in columns}
    ours = [
        [registry.MODELS[key].label, *(_cell(files[name], key, metric, digits) for _, name, metric, digits in columns)]
        for key in registry.POLICIES
    ]
    n = files["reward.csv"].n.iloc[0]
    run = outputs.read_json(profile, "run.json", base)
    lines = [
        f"Profile `{profile.name}`, {n} test prompts, mean [95 % bootstrap interval]. ROUGE by the published decoding, "
        f"the rest on sampled answers; reward in logits of this run's reward model, KL in nats per answer.",
        "",
        _cost(run),
        "",
        *_table(["model", *(title for title, *_ in columns)], ours),
        "",
        "PPO minus full SFT, paired by prompt:",
        "",
    ]
    paired = outputs.read_csv(profile, "paired.csv", base)
    for row in paired[paired.model.str.startswith("ppo") & (paired.seed == profile.seed)].itertuples():
        verdict = "up" if row.ci_low > 0 else "down" if row.ci_high < 0 else "not told apart from zero"
        difference = f"{row.difference:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
        lines.append(f"- {registry.MODELS[row.model].label}, {row.metric}: {difference}, {verdict}")
    lines += _gap(profile, base)
    reward = outputs.read_csv(profile, "reward_model.csv", base).set_index("metric").value
    lines += [
        "",
        f"Reward model on {reward.test_pairs:.0f} test pairs: accuracy {reward.accuracy:.3f} "
        f"[{reward.accuracy_ci_low:.3f}, {reward.accuracy_ci_high:.3f}]; the rule that the longer answer is better "
        f"reaches {reward.length_rule:.3f}, untrained heads from {reward.untrained_head_min:.2f} to "
        f"{reward.untrained_head_max:.2f}.",
        "",
        *_seeds(profile, base),
        *_beyond(profile, base),
        "Published by `nabeelshan/rlhf-gpt2-pipeline` (GPT-2, Dahoas data, 1,658 test prompts, rewards on 200 of them; "
        "another model and other data than the lab's, so only the order of the rows can be compared):",
        "",
    ]
    published = PUBLISHED.pivot(index="model", columns="metric", values="value")
    rows = [
        [registry.MODELS[key].label, *("" if pd.isna(value) else f"{value:.3f}" for value in published.loc[key])]
        for key in registry.POLICIES
        if key in published.index
    ]
    titles = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "reward": "reward"}
    return "\n".join([*lines, *_table(["model", *(titles[c] for c in published.columns)], rows)])


def _cost(run: dict) -> str:
    """A sentence on time and memory; memory is not known on every system."""
    cost = f"The run took {sum(run['notebooks'].values()) / 60:.1f} minutes on {run['hardware']}"
    peaks = run.get("peak_memory_mb", {}).values()
    return cost + (f"; the largest notebook took {max(peaks):,} MB of memory." if peaks else ".")


def _gap(profile: Profile, base: Path | None) -> list[str]:
    """How far the gold score of the policies is from that of the references; nothing for real data."""
    if not profile.lab:
        return []
    gold, gap = outputs.read_csv(profile, "gold.csv", base), outputs.read_csv(profile, "gold_gap.csv", base)
    mean = gold[gold.metric == "gold"].set_index("model")["mean"]
    wins = gold[gold.metric == "win_rate_vs_sft"].set_index("model")
    lines = [
        "",
        f"The references' gold score is {mean.reference:.2f}; full SFT reaches {mean.sft_full / mean.reference:.2f} of "
        f"it. Foreign pairs: the share of sampled sentences with a word or pair of words that the corpus never has.",
        "",
    ]
    for row in gap.itertuples():
        won, label = wins.loc[row.model], registry.MODELS[row.model].label
        lines.append(
            f"- {label} closes {row.share:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}] of the gap to the references, and "
            f"wins {won['mean']:.2f} [{won.ci_low:.2f}, {won.ci_high:.2f}] against SFT by gold."
        )
    return lines


def _seeds(profile: Profile, base: Path | None) -> list[str]:
    """What `make seeds` found, where it has run: one row per seed."""
    if not (outputs.evaluation_dir(profile, base) / "seeds.csv").exists():
        return []
    means, paired = outputs.read_csv(profile, "seeds.csv", base), outputs.read_csv(profile, "paired.csv", base)
    accuracy = means[means.model == "reward_model"].set_index("seed")
    shown = list(itertools.product(registry.ALIGNED_CANDIDATES, ("reward", "gold") if profile.lab else ("reward",)))
    closing = registry.ALIGNED_CANDIDATES if profile.lab else ()
    rows = []
    for seed, model in accuracy.iterrows():
        of_seed = means[means.seed == seed]
        row = [str(seed), f"{model['mean']:.3f} [{model.ci_low:.3f}, {model.ci_high:.3f}]"]
        for name, metric in shown:
            ours = paired[(paired.seed == seed) & (paired.model == name) & (paired.metric == metric)].iloc[0]
            row.append(f"{ours.difference:+.2f} [{ours.ci_low:+.2f}, {ours.ci_high:+.2f}]")
        rows.append(row + [_cell(of_seed, name, "gap_closed", 2) for name in closing])
    titles = [f"{registry.MODELS[name].label}, {metric}" for name, metric in shown]
    titles += [f"{registry.MODELS[name].label}, gap closed" for name in closing]
    return [
        "The whole run with other seeds (`make seeds`), PPO minus full SFT, paired by prompt:",
        "",
        *_table(["seed", "reward model accuracy", *titles], rows),
        "",
    ]


def _beyond(profile: Profile, base: Path | None) -> list[str]:
    """What `make beyond` found, where it has run: a row per method, a column per seed."""
    if not (outputs.evaluation_dir(profile, base) / "beyond_frontier.csv").exists():
        return []
    points, given = (outputs.read_csv(profile, f"beyond_{name}.csv", base) for name in ("frontier", "given"))
    score, best = "gold" if profile.lab else "reward", points.method == "best_of_n"
    most, asked, rows = points[best].value.max(), points[best].n.iloc[0], []
    for method, of in points[points.chosen | best & (points.value == most)].groupby("method", sort=False):
        gains = zip(of[score], of[f"{score}_ci_low"], of[f"{score}_ci_high"], of.kl, strict=True)
        cells = [f"{gain:+.2f} [{low:+.2f}, {high:+.2f}], {kl:.1f}" for gain, low, high, kl in gains]
        name, cost = f"best of {most:.0f} of SFT", ["", ""]
        if method != "best_of_n":
            name, of_method = registry.MODELS[method].label, given[given.method == method].iloc[0]
            cost = [f"{of_method.answers:,}", f"{of_method.backward_tokens:,}"]
        rows.append([name, *cost, *cells])
    return [
        f"Other methods beside PPO, all trained anew at its budget, each at the setting that a search on validation "
        f"prompts chose (`make beyond`). Change of {score} from full SFT over one answer to each prompt, paired, and "
        f"the KL from SFT. Best of {most:.0f}: its choice among so many answers, over their mean, on {asked} prompts. "
        f"Answers and tokens are of the first seed:",
        "",
        *_table(
            ["method", "answers sampled", "tokens trained on", *(f"seed {seed}" for seed in points.seed.unique())], rows
        ),
        "",
    ]


def _sentiment(profile: Profile, base: Path | None) -> list[str]:
    """PPO on sentences beside the published run: scores, the judge, and what the gain cost."""
    files = ("measures", "paired", "variety", "reward_model", "costs", "shown")
    measures, paired, variety, accuracy, costs, shown = (
        outputs.read_csv(profile, f"{name}.csv", base) for name in files
    )
    shown = shown[~shown.rule.str.startswith("random")]  # the best, the worst and the middle are enough here
    variety, run = variety.set_index("model"), outputs.read_json(profile, "run.json", base)
    rows = [["`ash80/RLHF_in_notebooks`, as published: GPT-2", *(f"{score:.3f}" for score in PUBLISHED_SENTIMENT)]]
    rows[0] += [""] * 5
    change = paired[paired.metric == "reward"].set_index("model")
    model = SHOWN.get(run["settings"]["model"], run["settings"]["model"])
    for name in (name for name in change.index if name.startswith("ppo_seed")):
        gain, distinct, perplexity = change.loc[name], variety.distinct_2, variety.perplexity
        rows.append(
            [
                f"PPO, seed {name[-1]}: {model}",
                *(_cell(measures, policy, "reward", 3) for policy in ("sft_full", name)),
                f"{gain.difference:+.3f} [{gain.ci_low:+.3f}, {gain.ci_high:+.3f}]",
                _cell(measures, name, "kl", 1),
                " to ".join(_cell(measures, policy, "judge_positive", 2).split()[0] for policy in ("sft_full", name)),
                f"{distinct.sft_full:.2f} to {distinct[name]:.2f}",
                f"{perplexity.sft_full:.0f} to {perplexity[name]:.0f}",
            ]
        )
    known = costs.peak_memory_mb.notna().all()  # not on every system
    memory = f", and at most {costs.peak_memory_mb.max():,.0f} MB of memory" if known else ""
    titles = ["", "score, SFT", "score, PPO", "change", "KL", "judged positive", "distinct-2", "perplexity"]
    forms = {
        "tutorial": "reward model with a head written out",
        "adapter": "by an adapter (PPO's)",
        "words": "words alone",
    }
    judged = ", ".join(f"{forms[row.model]} {row.mean:.3f}" for row in accuracy.itertuples())
    examples = [[row.rule, _as_text(row.SFT), _as_text(row.PPO), row.reward] for row in shown.itertuples()]
    return [
        f"{measures.n.iloc[0]} beginnings of validation sentences, mean [95 % bootstrap interval], change paired by "
        f"beginning; score from -1 to 1, KL in nats per sentence, median perplexity under SFT.",
        "",
        *_table(titles, rows),
        "",
        *_table(["by rule", "SFT goes on", "PPO, seed 0, goes on", "score"], examples),
        "",
        f"Accuracy on the validation sentences: {judged}. All parts took {costs.seconds.sum() / 60:.0f} minutes on "
        f"{run['hardware']}{memory}.",
    ]


def _alpaca(profile: Profile, base: Path | None) -> list[str]:
    """The policies on instructions, and what the two reward models decide rightly."""
    measures, probes, costs = (
        outputs.read_csv(profile, f"{name}.csv", base) for name in ("measures", "reward_probes", "costs")
    )
    run = outputs.read_json(profile, "run.json", base)
    model, encoder = (SHOWN.get(run["settings"][field], run["settings"][field]) for field in ("model", "encoder"))
    shown = {"reward": 2, "naive_reward": 2, "rougeL": 3, "similarity": 3, "kl": 1, "ended": 2}
    titles = ["", "reward", "naive reward", "ROUGE-L", "similarity", "KL", "ends by itself"]
    rows = [
        [label, *(_cell(measures, name, metric, digits) for metric, digits in shown.items())]
        for name, label in (("base", f"base: {model}"), ("sft_full", "SFT"), ("ppo_aligned", "PPO"))
    ]
    decided = [
        f"{title} {_cell(probes, name, 'against_base', 3)} and {_cell(probes, name, 'other_prompt', 3)}"
        for name, title in (("naive_reward", "naive pairs"), ("mended_reward", "mended pairs"))
    ]
    return [
        f"{measures.n.iloc[0]} held-out instructions, mean [95 % bootstrap interval]; reward in standard deviations, "
        f"KL in nats per answer; similarity by the encoder {encoder} before it was trained as reward model.",
        "",
        *_table(titles, rows),
        "",
        f"Share decided rightly, of naive pairs and of exchanged instructions: a reward model of "
        f"{', of '.join(decided)}; words alone, of naive pairs, {_cell(probes, 'words_of_naive', 'against_base', 3)}. "
        f"All parts took {costs.seconds.sum() / 60:.0f} minutes on {run['hardware']}.",
    ]


def replaced(text: str, profile: Profile) -> str:
    """README text with the profile's part, between its markers, made anew. Raises ValueError where one is missing."""
    return _with_block(text, profile.name if profile.recipe else "results", results(profile, outputs.REFERENCE))


def _with_block(text: str, block: str, content: str) -> str:
    begin, end = (f"<!-- {block}: {side} -->" for side in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"README.md needs the markers {begin} and {end}, once each.")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


STAGES = {
    "reward": "training the reward model",
    "sft": "full fine-tuning",
    "scoring": "scoring answers",
    "generation": "beam search",
    "ppo": "an update of PPO",
}


def benchmarks(frame: pd.DataFrame) -> str:
    """The part of README.md on what `make bench` measured at GPT-2's shape, a table for each machine."""
    lines = [
        "## How fast",
        "",
        "Seconds of the published recipe and of TRL's defaults over ours, at GPT-2's shape with random weights and "
        "texts as long as the published data's: median and range of pairs of turns in one process, of equal results "
        "(`benchmarks/bench.py`). Fine-tuning and reward training are in 16 bit where the machine has bfloat16. In PPO "
        "ours reads the values off the policy's trunk, TRL's trainer has a value model for them. The last column is "
        "the share of the machine's own peak of matrix products. `results/benchmarks/` also has the means that were "
        "tried, and how cost grows.",
        "",
    ]
    for machine, part in frame[frame["shape"] == "gpt2"].groupby("machine", sort=False):
        rows = []
        for stage, ways in part.groupby("stage", sort=False):
            ways = ways.set_index("way")
            ours = ways.loc["ours"]
            ratios = [
                f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]" if row is not None else ""
                for row in (ways.loc[way] if way in ways.index else None for way in ("published", "trl"))
            ]
            of_peak = f"{ours.utilisation:.0%} of {ours.peak_tflop_per_s:.3g} TFLOP/s ({ours.precision})"
            memory = "" if pd.isna(ours.memory_mb) else f"{ours.memory_mb:,.0f}"
            rows.append([STAGES[stage], *ratios, memory, of_peak])
        first = part.iloc[0]
        said = f"{machine}, {first.threads} threads, torch {first.torch}, TRL {first.trl}, {part.date.max()}"
        titles = ["stage", "published recipe / ours", "TRL's defaults / ours", "MB beyond the weights", "of the peak"]
        lines += [f"{said}, tokens of {first.tokenizer}:", "", *_table(titles, rows), ""]
    return "\n".join(lines).rstrip()


def with_benchmarks(text: str, base: Path = outputs.REFERENCE) -> str:
    """README text with the table of results/benchmarks/, between its markers; as it is where nothing was measured."""
    path = base / "benchmarks" / "stages.csv"
    return _with_block(text, "benchmarks", benchmarks(pd.read_csv(path))) if path.exists() else text


def write_benchmarks() -> None:
    """Write what was measured at GPT-2's shape into README.md."""
    path = outputs.ROOT / "README.md"
    outputs.write_text(path, with_benchmarks(path.read_text(encoding="utf-8")))
    print("README.md: benchmarks written")


def write_readme(profile: Profile) -> None:
    """Write the results in results/ into README.md."""
    path = outputs.ROOT / "README.md"
    outputs.write_text(path, replaced(path.read_text(encoding="utf-8"), profile))
    print("README.md: results written")
