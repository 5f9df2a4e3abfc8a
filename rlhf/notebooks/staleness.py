"""Whether a notebook has finished: for its code, the modules that it imports, its settings and its inputs as they are.

A change of a module makes those notebooks stale that import it, directly or through others. What comes after a stale
notebook is run again too (execution.choose), so the outputs of earlier notebooks need not be looked at.
"""

import ast
import dataclasses
import hashlib
import json
from pathlib import Path

import rlhf
from rlhf import outputs
from rlhf.profiles import Profile

import nbformat

PACKAGE = Path(rlhf.__file__).parent
DATA = (".toml", ".md", ".json", ".safetensors", ".txt")
INPUTS = ("model", "dataset", "published", "encoder")  # may be local paths, which count by what lies there


def name_of(notebook: Path) -> str:
    """The name that run.json uses, for example 02_reward_modeling/1_preference_data."""
    return f"{notebook.parent.name}/{notebook.stem}"


def copy_of(notebook: Path, profile: Profile) -> Path:
    """Where the executed copy of a notebook lies."""
    return outputs.notebooks_dir(profile) / notebook.parent.name / notebook.name


def settings_of(profile: Profile) -> dict:
    """What makes two runs comparable: every setting but the number of threads, as JSON gives it back."""
    settings = json.loads(json.dumps(dataclasses.asdict(profile)))
    del settings["threads"]
    return settings


def key_of(notebook: Path, profile: Profile, package: Path = PACKAGE) -> str:
    """A hash of all that the outputs of a notebook are made from, apart from the notebooks before it."""
    cells = nbformat.read(notebook, as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    files = sorted(imported_files(code, notebook.parent, package))
    made_from = {
        "code": code,
        "modules": [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files],
        "settings": settings_of(profile) | {field: content_of(getattr(profile, field) or "") for field in INPUTS},
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def is_finished(notebook: Path, profile: Profile) -> bool:
    """Whether the executed copy is complete and made from what there is now."""
    copy = copy_of(notebook, profile)
    if not copy.exists():
        return False
    run = nbformat.read(copy, as_version=4).metadata.get("rlhf", {})
    return bool(run.get("finished")) and run.get("key") == key_of(notebook, profile)


def imported_files(code: str, folder: Path, package: Path = PACKAGE) -> set[Path]:
    """The files of this repository that `code` imports, directly or through others, and the data beside them.

    Those are modules of the package and modules in `folder`. What a package holds beside its modules, like a table, a
    template or the folder of a model, belongs to it.
    """
    found: set[Path] = set()
    waiting = [code]
    while waiting:
        new = {file for name in _names(waiting.pop()) for file in _files(name, folder, package)} - found
        found |= new
        waiting += [file.read_text(encoding="utf-8") for file in sorted(new)]
    folders = {module.parent for module in found if module.is_relative_to(package)}
    data = {file for path in folders for file in (*path.iterdir(), *path.glob("base/*")) if file.suffix in DATA}
    return found | data - {package / "profiles.toml"}  # the settings count one by one


def _names(code: str) -> set[str]:
    """The dotted names that Python code imports: of `from a import b` both a and a.b."""
    names = set()
    code = "\n".join(line for line in code.split("\n") if not line.startswith(("%", "!")))  # what only Jupyter knows
    try:
        tree = ast.parse(code)
    except SyntaxError:  # which is shown when it is executed
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def _files(name: str, folder: Path, package: Path) -> list[Path]:
    """The files behind a dotted name and the packages that it lies in; none for what is not of this project."""
    first, *rest = name.split(".")
    start = package.parent if first == package.name else folder
    paths = [start.joinpath(first, *rest[:i]) for i in range(len(rest) + 1)]
    candidates = [file for path in paths for file in (path.with_suffix(".py"), path / "__init__.py")]
    return [file for file in candidates if file.is_file()]


def content_of(name: str) -> str:
    """A hash of the contents of a local file or folder; the name itself where there is none, as of a Hub repository."""
    path = Path(name)
    if not name or not path.exists():
        return name
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    named = [f"{file.relative_to(path)} {outputs.sha256(file)}\n" for file in files]
    return hashlib.sha256("".join(named).encode()).hexdigest()
