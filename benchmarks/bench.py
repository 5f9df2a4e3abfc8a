"""Each stage against the published recipe and TRL's defaults, the means that were tried, and how cost grows.

python benchmarks/bench.py                           # all at GPT-2's shape: hours on a CPU; each stage is kept at once
python benchmarks/bench.py --stage sft --pairs 5     # one stage; its rows replace those in results/benchmarks/
python benchmarks/bench.py --shape tiny --results FOLDER    # of no meaning but that everything works

The ways take turns in one process, so that what slows the machine slows all. What counts is the median of the ratios
of such pairs. The ways of a stage must agree on what they compute, or the benchmark fails.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from rlhf import outputs, plots, report, runtime
from rlhf.profiles import set_up

import numpy as np
import pandas as pd
import torch

import growth
import means
from measure import alternate, conditions, flops, machine, matmul_peak, quiet, ratios, shares
from ways import STAGES, Stage, Way
from workload import SHAPES, Workload, make_workload

KEY = ["shape", "machine", "stage", "way"]
PEAK_SIZES = {"tiny": 128, "gpt2": 8192 if torch.cuda.is_available() else 2048}


def require_agreement(name: str, stage: Stage, ways: dict[str, Way]) -> float:
    """The largest difference between ways of a stage. Raises ValueError where it is more than rounding."""
    ours, *others = (way.value() for way in ways.values())
    gaps = []
    for other in others:
        if other.shape != ours.shape:
            raise ValueError(f"{name}: the ways give results of shapes {ours.shape} and {other.shape}.")
        answers = np.issubdtype(ours.dtype, np.integer)
        gap = (ours != other).any(axis=1).mean() if answers else np.abs(ours - other).max()
        gaps.append(float(gap))
    if not max(gaps) <= stage.tolerance:
        found = dict(zip([*ways][1:], gaps, strict=True))
        raise ValueError(f"{name}: the results differ from ours by {found}, more than {stage.tolerance:g}.")
    return max(gaps)


def peaks(shape: str) -> dict[str, float]:
    """FLOP/s of matrix products on this machine, by precision."""
    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return {
        name: matmul_peak(dtype, PEAK_SIZES[shape], 0.01 if shape == "tiny" else 2) for name, dtype in kinds.items()
    }


def measure_stage(name: str, load: Workload, pairs: int, peak: dict[str, float]) -> pd.DataFrame:
    """A row for each way of a stage; what the machine's peak has to do with it stands in the row of ours."""
    stage = STAGES[name]
    ways = stage.ways(load)
    with quiet():
        gap = require_agreement(name, stage, ways)
        work, parts = flops(ways["ours"].prepare()), shares(ways["ours"].prepare())
    turns = alternate({way: each.prepare for way, each in ways.items()}, pairs)
    precision = "bfloat16" if stage.in_16_bit and runtime.bf16_is_native() else "float32"
    rows = []
    for way, its in turns.items():
        row = {"stage": name, "way": way, "rows": len(load.pairs), "pairs": pairs}
        row |= {"seconds": float(np.median([turn.seconds for turn in its])), **ratios(its, turns["ours"])}
        row |= {"memory_mb": max(turn.memory_mb for turn in its), "gap": gap, "precision": precision}
        if way == "ours":
            rate = work / row["seconds"]
            row |= {"tflop": work / 1e12, "tflop_per_s": rate / 1e12, "peak_tflop_per_s": peak[precision] / 1e12}
            row |= {"utilisation": rate / peak[precision], **parts}
        rows.append(row)
    return pd.DataFrame(rows)


def show(frame: pd.DataFrame) -> None:
    """One line for a stage."""
    ours = frame.iloc[0]
    others = ", ".join(
        f"{row.way} {row.ratio:.2f}x [{row.ratio_low:.2f}, {row.ratio_high:.2f}] and {row.memory_mb:,.0f} MB"
        for row in frame.iloc[1:].itertuples()
    )
    parts = ", ".join(f"{part} {ours[part]:.0%}" for part in ("matmul", "attention", "optimizer", "other", "idle"))
    print(
        f"{ours.stage}: ours {ours.seconds:.3g} s and {ours.memory_mb:,.0f} MB for {ours.rows} rows; {others}; "
        f"{ours.utilisation:.0%} of the {ours.precision} peak of {ours.peak_tflop_per_s:.3g} TFLOP/s ({parts}); "
        f"results differ by at most {ours.gap:.1g}",
        flush=True,
    )


def write(folder: Path, name: str, frame: pd.DataFrame, key: list[str], load: Workload, shape: str) -> None:
    frame = frame.assign(shape=shape, machine=machine(), **conditions(load))
    frame = frame[[*key, *frame.columns.drop(key)]]
    outputs.merge_table(folder / f"{name}.csv", frame, key)


def draw(folder: Path, shape: str) -> None:
    """The figures of what has been measured at a shape on this machine, and the table in README.md."""
    for name, figure in (("stages", plots.benchmark_ratios), ("growth", plots.growth)):
        if (folder / f"{name}.csv").exists():
            rows = pd.read_csv(folder / f"{name}.csv")
            rows = rows[(rows["shape"] == shape) & (rows.machine == machine())]
            if len(rows):
                drawn = figure(rows)
                outputs.replace(folder / f"{name}.png", lambda path, drawn=drawn: drawn.savefig(path, format="png"))
    if folder == outputs.REFERENCE / "benchmarks" and (folder / "stages.csv").exists():
        report.write_benchmarks()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("gpt2", "tiny"), default="gpt2")
    parser.add_argument("--stage", choices=("all", *STAGES, "means", "growth"), default="all")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of turns that count; one more is run")
    parser.add_argument("--results", type=Path, default=outputs.REFERENCE / "benchmarks", help="folder of the CSVs")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RLHF_OUTPUTS"] = folder
        load = make_workload(SHAPES[options.shape])
        set_up(load.profile)
        if "RLHF_THREADS" not in os.environ:
            torch.set_num_threads(1 if options.shape == "tiny" else runtime.cpu_count())
        peak = peaks(options.shape)
        said = ", ".join(f"{name} {rate / 1e12:.3g}" for name, rate in peak.items())
        print(f"{machine()}; matrix products reach in TFLOP/s: {said}; tokenizer: {load.tokenizer_name}", flush=True)
        asked = [*STAGES, "means", "growth"] if options.stage == "all" else [options.stage]
        for name in asked:
            if name in STAGES:
                frame = measure_stage(name, load, options.pairs, peak)
                show(frame)
                write(options.results, "stages", frame, KEY, load, options.shape)
            elif name == "means":
                frame = means.table(load, options.pairs)
                write(options.results, "means", frame, ["shape", "machine", "mean"], load, options.shape)
            else:
                frame = growth.table(load, growth.AXES[options.shape])
                write(options.results, "growth", frame, ["shape", "machine", "axis", "value"], load, options.shape)
        draw(options.results, options.shape)
    return 0


if __name__ == "__main__":
    sys.exit(main())
