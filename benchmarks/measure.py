"""Seconds, memory, floating-point operations and their shares of what runs, and the machine that it runs on."""

import contextlib
import ctypes
import datetime
import gc
import io
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from rlhf import runtime

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils import flop_counter

from workload import Workload, on_gpu

# Parts of a step by the names of torch's operations; the first that fits counts.
PARTS = {
    "optimizer": ("adam", "foreach", "clip_grad", "linalg_vector_norm"),
    "attention": ("scaled_dot_product", "flash", "fmha", "efficient_attention"),
    "matmul": ("mm", "linear", "matmul", "gemm", "nvjet", "cutlass", "convolution"),
}


class Turn(NamedTuple):
    seconds: float
    memory_mb: float  # at its peak, beyond what was held before; NaN where the system does not tell


def _held_and_peak() -> tuple[float, float]:
    if on_gpu():
        return torch.cuda.memory_allocated() / 1e6, torch.cuda.max_memory_allocated() / 1e6
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines())
        return tuple(int(lines[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    except OSError:  # macOS, Windows
        return np.nan, np.nan


def _forget_peak() -> None:
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """In the block, looking for garbage does not go through what was there before it: the libraries, a second each."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What the libraries print in the block is thrown away; an error is raised as ever."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def take_turn(run: Callable[[], object]) -> Turn:
    """One run, what it prints thrown away. Where it gives a number, that is its seconds."""
    _forget_peak()
    held, _ = _held_and_peak()
    started = runtime.clock()
    with quiet():
        given = run()
    seconds = given if isinstance(given, float) else runtime.clock() - started
    return Turn(seconds, _held_and_peak()[1] - held)


def alternate(prepared: dict[str, Callable], pairs: int) -> dict[str, list[Turn]]:
    """The turns of each of several ways, one after the other, `pairs` times; once more first, which does not count.

    prepared: by name, what builds a run and gives it; only the run is measured.
    """
    turns: dict[str, list[Turn]] = {name: [] for name in prepared}
    with only_new_garbage():
        for pair in range(pairs + 1):
            for name, prepare in prepared.items():
                turn = take_turn(prepare())
                if pair:
                    turns[name].append(turn)
    return turns


def ratios(others: list[Turn], ours: list[Turn]) -> dict[str, float]:
    """How many times the seconds of our turns others take: median and range over the pairs."""
    found = [other.seconds / our.seconds for other, our in zip(others, ours, strict=True)]
    return {"ratio": float(np.median(found)), "ratio_low": min(found), "ratio_high": max(found)}


def flops(run: Callable[[], object]) -> int:
    """The multiplications and additions of matrix products and attention that a run executes, padding included."""
    ops = torch.ops.aten
    name = "_scaled_dot_product_flash_attention_for_cpu"  # which torch does not count
    formulas = {
        getattr(ops, name): lambda q, k, v, *_, **__: flop_counter.sdpa_flop_count(q, k, v),
        getattr(ops, f"{name}_backward"): lambda *s, **__: flop_counter.sdpa_backward_flop_count(*s[:4]),
    }
    with flop_counter.FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        run()
    return counter.get_total_flops()


def shares(run: Callable[[], object]) -> dict[str, float]:
    """The shares of a run's time by PARTS, of other operations, and of all that is none of torch's, by the profiler.

    On a GPU it is the time of kernels; what is left is that in which no kernel runs.
    """
    kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu()
    started = runtime.clock()
    with profile(activities=kinds) as profiler:
        given = run()
        wall = given if isinstance(given, float) else runtime.clock() - started
    found = dict.fromkeys((*PARTS, "other"), 0.0)
    for event in profiler.key_averages():
        name = event.key.lower()
        part = next((part for part, words in PARTS.items() if any(word in name for word in words)), "other")
        found[part] += (event.self_device_time_total if on_gpu() else event.self_cpu_time_total) / 1e6 / wall
    return found | {"idle": max(0.0, 1 - sum(found.values()))}


def matmul_peak(dtype: torch.dtype, size: int, seconds: float = 1.0) -> float:
    """The most FLOP/s that a product of square matrices of this size reaches, in so many seconds of trying."""
    a, b = (torch.randn(size, size, device=runtime.device(), dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    best, ended = np.inf, runtime.clock() + seconds
    while best == np.inf or runtime.clock() < ended:
        started = runtime.clock()
        for _ in range(10):
            torch.mm(a, b)
        best = min(best, (runtime.clock() - started) / 10)
    return 2 * size**3 / best


def machine() -> str:
    """The kind of machine, without its name."""
    if on_gpu():
        return torch.cuda.get_device_name()
    bf16 = ", bfloat16" if runtime.bf16_is_native() else ""
    return f"{runtime.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}{bf16}"


def conditions(load: Workload) -> dict[str, object]:
    """What a measurement depends on beside the code: data, threads, versions and date."""
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"tokenizer": load.tokenizer_name, "threads": torch.get_num_threads(), **versions, "date": date}
