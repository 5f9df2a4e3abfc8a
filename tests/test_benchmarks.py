"""The benchmarks at a tiny shape: every stage runs, its ways agree, and a way that computes something else is found."""

import itertools
import json
import math
import os
import subprocess
from pathlib import Path

from rlhf import data, models, outputs, plots, report, sft
from rlhf.profiles import load_profile

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, GPT2Tokenizer

import bench
import gpu
import growth
import means
import measure
import ways
import workload

TINY = workload.SHAPES["tiny"]
PEAK = {"float32": 1e12, "bfloat16": 1e12}


@pytest.fixture(autouse=True)
def outputs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("RLHF_THREADS", "1")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.fixture(scope="module")
def load():
    return workload.make_workload(TINY)


@pytest.fixture(scope="module")
def other_load():
    """The same, with models that compute something else."""
    other = workload.make_workload(TINY)
    for kind, published in itertools.product((GPT2LMHeadModel, GPT2ForSequenceClassification), (False, True)):
        with torch.no_grad():
            for weight in other._start(kind, published).parameters():
                weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    return other


@pytest.mark.parametrize("name", ways.STAGES)
def test_stage_has_a_row_for_each_way_and_its_results_are_equal(load, name, tmp_path, capsys):
    frame = bench.measure_stage(name, load, 1, PEAK)
    named = ["ours", "published"] + ["trl"] * (name in ("reward", "sft", "ppo"))
    assert list(frame.way) == named and set(frame.stage) == {name}
    ours = frame.iloc[0]
    assert ours.ratio == ours.ratio_low == ours.ratio_high == 1
    assert (frame.seconds > 0).all() and (frame.gap <= ways.STAGES[name].tolerance).all()
    assert ours.utilisation == pytest.approx(ours.tflop / ours.seconds, rel=1e-6) and ours.tflop > 0
    parts = ours[["matmul", "attention", "optimizer", "other", "idle"]]
    assert (parts >= 0).all() and parts.sum() == pytest.approx(1, abs=0.2)
    assert (ours.optimizer > 0) == (name in ("reward", "sft", "ppo"))
    bench.show(frame)
    assert capsys.readouterr().out.startswith(f"{name}: ours ")
    bench.write(tmp_path, "stages", frame, bench.KEY, load, "tiny")
    assert list(pd.read_csv(tmp_path / "stages.csv").columns[:4]) == bench.KEY


@pytest.mark.parametrize("name", ways.STAGES)
def test_way_that_computes_something_else_is_found(load, other_load, name):
    stage = ways.STAGES[name]
    mixed = {"ours": stage.ways(load)["ours"], "published": stage.ways(other_load)["published"]}
    with pytest.raises(ValueError, match=rf"{name}: the results differ from ours by .*'published': "):
        bench.require_agreement(name, stage, mixed)


def test_result_that_is_no_number_or_of_another_shape_is_no_agreement():
    numbers = [np.array([1.0]), np.array([np.nan]), np.array([1.0, 1.0])]
    one, nan, two = (ways.Way(None, lambda value=value: value) for value in numbers)
    stage = ways.Stage(None, False, 1.0)
    assert bench.require_agreement("x", stage, {"ours": one, "published": one}) == 0
    for other in (nan, two):
        with pytest.raises(ValueError, match="x: the "):
            bench.require_agreement("x", stage, {"ours": one, "published": other})


def test_stages_of_several_calls_stand_in_one_table(load, tmp_path):
    for stage, seconds in (("sft", 1.0), ("ppo", 2.0), ("sft", 3.0)):
        frame = pd.DataFrame({"stage": stage, "way": ["ours", "trl"], "seconds": seconds})
        bench.write(tmp_path, "stages", frame, bench.KEY, load, "tiny")
    found = pd.read_csv(tmp_path / "stages.csv")
    assert list(zip(found.stage, found.seconds, strict=True)) == [("sft", 3.0)] * 2 + [("ppo", 2.0)] * 2
    assert set(found.columns) > {"machine", "threads", "tokenizer", "torch", "transformers", "trl", "date"}
    assert os.uname().nodename not in (tmp_path / "stages.csv").read_text()


def test_command_writes_tables_and_figures_into_the_folder_and_leaves_the_readme_alone(tmp_path, capsys):
    before = (outputs.ROOT / "README.md").read_bytes()
    command = ["--shape", "tiny", "--stage", "scoring", "--pairs", "1", "--results", str(tmp_path)]
    assert bench.main(command) == 0
    assert {path.name for path in tmp_path.glob("[a-z]*.*")} == {"stages.csv", "stages.png"}
    assert "matrix products reach in TFLOP/s: float32 " in capsys.readouterr().out
    assert (outputs.ROOT / "README.md").read_bytes() == before


def test_each_mean_is_measured_with_and_without(load):
    frame = means.table(load, 1)
    assert len(frame) == frame["mean"].nunique() >= 10
    assert (frame.ratio > 0).all() and frame.kept.str.match("yes|no|where").all()


def test_growth_has_the_exponents_of_its_axes_and_says_what_is_reckoned(load, capsys):
    frame = growth.table(load, growth.AXES["tiny"])
    assert list(frame.axis.unique()) == ["texts", "tokens", "parameters"]
    assert list(frame[frame.reckoned].value) == list(growth.RECKONED)
    assert capsys.readouterr().out.count("B, reckoned: ") == 2
    assert len(plots.growth(frame).axes) == 6


def test_exponent_of_a_power_is_found_exactly():
    rows = pd.DataFrame({"value": [1.0, 2, 5], "seconds": [3.0, 12, 75]})
    slope, start = growth.exponent(rows, "seconds")
    assert (slope, math.exp(start)) == pytest.approx((2, 3))


def test_operations_of_products_and_of_attention_are_counted_forward_and_backward():
    a, b = torch.randn(3, 4), torch.randn(4, 5)
    assert measure.flops(lambda: torch.mm(a, b)) == 2 * 3 * 4 * 5
    q, k, v = torch.randn(3, 2, 7, 8, 16, requires_grad=True)
    forward = 2 * 2 * 2 * 7 * 8 * 8 * 16  # two products
    attend = torch.nn.functional.scaled_dot_product_attention
    assert measure.flops(lambda: attend(q, k, v, is_causal=True)) == forward
    assert measure.flops(lambda: attend(q, k, v, is_causal=True).sum().backward()) == 3.5 * forward  # and five


def test_turns_alternate_and_the_first_pair_does_not_count():
    order = []

    def way(name, seconds):
        given = iter([100.0, *seconds])
        return lambda: lambda: (order.append(name), next(given))[1]

    turns = measure.alternate({"ours": way("a", [1.0, 2.0, 1.0]), "trl": way("b", [3.0, 4.0, 1.0])}, 3)
    assert order == ["a", "b"] * 4
    assert measure.ratios(turns["trl"], turns["ours"]) == {"ratio": 2, "ratio_low": 1, "ratio_high": 3}


def test_peak_memory_is_that_of_the_turn_alone():
    if math.isnan(measure._held_and_peak()[0]):
        pytest.skip("this system does not tell")
    kept = torch.ones(8_000_000)
    large, small = (measure.take_turn(lambda n=n: torch.ones(n).sum()).memory_mb for n in (16_000_000, 1000))
    assert 60 < large < 80 and small < 8 and kept.sum() > 0


def test_texts_are_as_long_as_they_should_be_and_fit(load):
    pairs = workload.random_pairs(load.tokenizer, workload.SHAPES["tiny"], 400)
    for column, (median, _) in (("prompt", workload.PROMPT), ("chosen", workload.ANSWER)):
        lengths = [len(ids) for ids in load.tokenizer(list(pairs[column]))["input_ids"]]
        assert np.median(lengths) == pytest.approx(median * TINY.share, rel=0.15)
        assert not any(load.tokenizer.unk_token_id in ids for ids in load.tokenizer(list(pairs[column]))["input_ids"])
    assert load.policy().config.vocab_size == TINY.vocabulary + 1


def test_lengths_are_those_of_the_published_examples():
    named = os.environ.get("RLHF_TEST_DATA")
    if not named:
        pytest.skip("RLHF_TEST_DATA is not set: no published examples to read")
    folder = Path(named)
    if not (folder / "dahoas" / "published_examples.json").is_file():
        pytest.skip("RLHF_TEST_DATA has no dahoas/published_examples.json")
    rows = json.loads((folder / "dahoas" / "published_examples.json").read_text(encoding="utf-8"))
    tokenizer = GPT2Tokenizer.from_pretrained(folder / "gpt2_tokenizer")
    for column, (median, deviation) in (("prompt", workload.PROMPT), ("ground_truth", workload.ANSWER)):
        logs = np.log([len(tokenizer(row[column])["input_ids"]) for row in rows])
        assert (round(np.exp(logs.mean())), round(logs.std(), 2)) == (median, deviation)


def benchmark_frame(shape: str) -> pd.DataFrame:
    row = {"shape": shape, "machine": "2 cores", "stage": "sft", "threads": 2, "torch": "2.13", "trl": "1.12"}
    row |= {"ratio": 1.0, "ratio_low": 1.0, "ratio_high": 1.0, "memory_mb": 1000.0, "date": "2026-11-27"}
    row |= {"tokenizer": "GPT-2", "utilisation": 0.5, "peak_tflop_per_s": 0.2, "precision": "float32"}
    ratios = {"ratio": 1.5, "ratio_low": 1.25, "ratio_high": 1.75}
    return pd.DataFrame([row | {"way": "ours"}, row | {"way": "published", **ratios}])


def test_table_of_the_readme_has_what_was_measured_at_the_true_shape_alone():
    lines = report.benchmarks(pd.concat([benchmark_frame("gpt2"), benchmark_frame("tiny")])).splitlines()
    row = "| full fine-tuning | 1.50 [1.25, 1.75] |  | 1,000 | 50% of 0.2 TFLOP/s (float32) |"
    assert lines[-1] == row and "## How fast" in lines and sum(line.startswith("| full") for line in lines) == 1


def test_readme_shows_the_committed_benchmarks(tmp_path):
    text = (outputs.ROOT / "README.md").read_text(encoding="utf-8")
    assert report.with_benchmarks(text) == text, "run `make bench`"
    (tmp_path / "benchmarks").mkdir()
    benchmark_frame("gpt2").to_csv(tmp_path / "benchmarks" / "stages.csv", index=False)
    marked = "a\n<!-- benchmarks: begin -->\n<!-- benchmarks: end -->\nb"
    assert "| full fine-tuning | 1.50" in report.with_benchmarks(marked, tmp_path)


def test_checks_of_a_gpu_run_on_a_cpu_and_say_what_is_left_out(tmp_path, capsys):
    assert gpu.main(["checks", str(tmp_path), "--shape", "tiny"]) == 0
    tables = {path.stem: pd.read_csv(path) for path in sorted(tmp_path.glob("[a-z]*.csv"))}
    assert set(tables) == {"loss_curves", "four_bit", "ppo_in_16_bit"}
    assert len(tables["loss_curves"]) == gpu.STEPS and tables["loss_curves"].cpu.nunique() == gpu.STEPS
    assert 0 < tables["four_bit"].kernel_gap[0] < gpu.LARGEST_KERNEL_GAP
    assert tables["four_bit"].four_bit_mb[0] < tables["four_bit"].whole_mb[0]
    if not torch.cuda.is_available():
        printed = capsys.readouterr().out
        assert printed.count("no CUDA here") == 2 and "float32 is run" in printed


def test_kernels_that_compute_something_else_are_an_error(load, monkeypatch):
    def wrong(quantized, whole):
        with torch.no_grad():
            whole.transformer.h[0].mlp.c_fc.weight *= 2
        return whole

    monkeypatch.setattr(gpu, "dequantised", wrong)
    with pytest.raises(ValueError, match="kernels' logits are off by"):
        gpu.four_bit(load, sft.tokenize({"prompt": ["w1 w2\n"], "completion": ["w3"]}, load.tokenizer))


def test_stand_ins_are_a_model_and_pairs_that_the_gpt2_profile_takes(tmp_path, monkeypatch, own_datasets_cache):
    assert gpu.main(["stand-ins", str(tmp_path), "--shape", "tiny"]) == 0
    monkeypatch.setenv("RLHF_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("RLHF_DATASET", str(tmp_path / "pairs.jsonl"))
    monkeypatch.setenv("RLHF_OUTPUTS", str(tmp_path / "outputs"))
    profile = load_profile("gpt2")
    model, tokenizer = models.prepare_base(profile)
    assert model.config.n_layer == TINY.layers and tokenizer.pad_token_id == TINY.vocabulary
    assert len(data.load_preferences(profile)["train"]) > 100


def test_curves_that_part_are_an_error(load, monkeypatch):
    curves = {"cpu": [1.0] * gpu.STEPS, "cuda": [1.0] * (gpu.STEPS - 1) + [1.1]}
    monkeypatch.setattr(gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(gpu, "loss_curve", lambda load, rows, device: curves[device])
    with pytest.raises(ValueError, match=r"CPU and CUDA differ by 0\.1 nats"):
        gpu.compare_curves(load, None)


def test_shell_script_is_whole_and_names_files_that_exist():
    script = outputs.ROOT / "benchmarks" / "gpu.sh"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    named = [word for word in script.read_text(encoding="utf-8").split() if word.endswith((".py", ".lock"))]
    assert len(named) > 5 and all((outputs.ROOT / word).is_file() for word in named)
