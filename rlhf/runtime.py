"""What the machine is and how it is used: device, precision, threads, seeds, clock."""

import ctypes
import functools
import gc
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import torch


def processes() -> int:
    """How many processes train together: what a launcher says, 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The GPU, by its number where each of several processes has one; without CUDA Apple's MPS, or else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if processes() > 1 else torch.device("cuda")


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def hardware() -> str:
    """Where a run computes, in a reader's words."""
    if torch.cuda.is_available():
        return f"one {torch.cuda.get_device_name()} GPU"
    if device().type == "mps":
        return "Apple's GPU (MPS)"
    cores = cpu_count()
    return f"{cores} CPU core{'s' * (cores > 1)}"


def bf16_is_native(where: torch.device | None = None) -> bool:
    """Whether `where` (this run's device without it) computes in bfloat16.

    Elsewhere it is emulated, on a T4 or V100 as on most CPUs: autocast would be slower than float32, not faster.
    """
    if (where or device()).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and torch.backends.cpu.get_cpu_capability() == "AVX512"


def finest(where: torch.device) -> torch.dtype:
    """The precision of sums that must be exact: float64, or float32 on Apple's MPS, which has no finer one."""
    return torch.float32 if where.type == "mps" else torch.float64


def autocast(where: torch.device) -> torch.autocast:
    """bfloat16 for matrix products on a GPU that has it; float32 elsewhere."""
    return torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda" and bf16_is_native(where))


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch: the one place that does."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def isolated_generator(seed: int) -> Iterator[None]:
    """The global generators start from `seed` in the block, and go on after it as if it had not been.

    For libraries that draw from them without asking: a new head, a new adapter, the order of batches.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def generator_states() -> dict:
    """The states of the global generators of Python, NumPy, torch and its GPUs, as JSON has them."""
    version, numbers, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors = [state.tolist() for state in (torch.get_rng_state(), *on_gpus)]
    return {"python": [version, list(numbers), gauss], "numpy": [kind, keys.tolist(), *rest], "torch": tensors}


def set_generator_states(states: dict) -> None:
    """Put the global generators where `generator_states` found them."""
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(tuple(states["numpy"]))
    on_cpu, *on_gpus = (torch.tensor(state, dtype=torch.uint8) for state in states["torch"])
    torch.set_rng_state(on_cpu)
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(on_gpus)


def clock() -> float:
    """Seconds of a monotonic clock, once all that was sent to a GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif device().type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def free_memory() -> None:
    """Give back the memory of what is no longer used.

    Python's garbage collector counts objects and not their size, so a model in a cycle with its trainer may stay for
    long; and glibc keeps most of what was freed: after fine-tuning 135M weights 2.5 GB, which the next training cannot
    always use.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # other systems' allocators do without
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def positive_number(variable: str, example: str, zero: bool = False) -> float | None:
    """A number of the environment; None where it is unset. `zero`: it may be that too.

    Raises ValueError for what is no such number.
    """
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        given = float(text)
    except ValueError:
        given = math.nan
    if not (0 < given < math.inf or (zero and given == 0)):
        raise ValueError(f"{variable}={text!r} is no positive number; give {example}, or unset it.")
    return given


def memory_bytes() -> float:
    """The memory of the device: that of the GPU or of the machine, or RLHF_MEMORY_GB (10^9 bytes) where less is free.

    Raises ValueError for an RLHF_MEMORY_GB that is no positive number.
    """
    if given := positive_number("RLHF_MEMORY_GB", "gigabytes, such as 16"):
        return given * 1e9
    if device().type == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().total


def checkpoint_seconds() -> float:
    """The least time between two checkpoints of a training: RLHF_CHECKPOINT_SECONDS, or three minutes.

    A short training then writes none but its last. Raises ValueError for a value that is no time.
    """
    given = positive_number("RLHF_CHECKPOINT_SECONDS", "seconds, such as 180, or 0", zero=True)
    return 180.0 if given is None else given


def peak_memory_mb(pid: int) -> int | None:
    """The peak resident memory of a process so far, in MB; None where the system does not tell (macOS, Windows)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM:")), None)


def asked(variable: str) -> bool:
    """Whether a switch like FORCE=1 is set in the environment."""
    return os.environ.get(variable, "").strip().lower() not in ("", "0", "false", "no")


def reported(main: Callable[..., int]) -> Callable[..., int]:
    """The `main` of a command, with exit status 2 and one line where it can't do what it was asked.

    That is a ValueError or OSError: a bad setting, a file or checkpoint that is missing, a folder that is in use.
    """

    @functools.wraps(main)
    def reporting(*arguments) -> int:
        try:
            return main(*arguments)
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    return reporting


def command_line(main: Callable[[], int]) -> int:
    """Run the `main` of a script; exit status 130 where it is interrupted, by Ctrl-C or SIGTERM."""

    def stop(*_) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):  # a second one must not break off the ending of the children
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        return main()
    except KeyboardInterrupt:
        print("\nInterrupted. The same command, without FORCE, goes on where this one stopped.", file=sys.stderr)
        return 130


def run_child(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit status. An interruption ends it too, before it is raised again."""
    child = subprocess.Popen(command, env=environment)
    try:
        return child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
