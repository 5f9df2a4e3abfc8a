"""Put the outputs of executed notebooks into the tracked ones, and their CSVs and plots into results/.

Equal runs give equal files. The prose stays that of the tracked notebooks, apart from the line that tells the time.
Nothing is written unless every notebook can be: all finished, for the code, modules and settings that there are now.
"""

import copy
import functools
import re
import shutil
import tempfile
from pathlib import Path

from rlhf import outputs, studies
from rlhf.notebooks.execution import ANSI, STUDIES, set_time
from rlhf.notebooks.staleness import copy_of, is_finished, name_of
from rlhf.profiles import Profile
from rlhf.studies import seeds

import nbformat
import pandas as pd
from nbformat import NotebookNode

STUDY_PLOTS = ("relevance", "data_size", "overoptimisation", "best_of_n", "judge", "frontier")
KEPT_WITHOUT_STUDY = {"seeds.csv", "ppo_grid.csv", *studies.FILES, *(f"{name}.png" for name in STUDY_PLOTS)}
# How the names of all files begin that these commands of make write.
OF_COMMANDS = ("troubleshooting", "beyond_", "labels", *studies.ENSEMBLES)
MAX_BYTES = 500_000
# The start of an absolute path in a home folder, a temporary folder or on a mounted disk.
MACHINE_PATH = re.compile(r"(?<![\w./])/(?:root|work|opt|tmp|mnt|home/\w+|Users/\w+)/\w[^\s'\"`<>)]*")
PROGRESS_BAR = re.compile(r"\d+%\|.*\||\d+ ?\w* \[\d+:\d+")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
WIDGET = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def machine_paths(text: str) -> list[str]:
    """What in `text` tells where on which machine it was made."""
    found = [match.group() for match in MACHINE_PATH.finditer(text)]
    for folder in {outputs.ROOT, Path.home(), Path(tempfile.gettempdir())} - {Path("/")}:
        found += re.findall(rf"(?<![\w./]){re.escape(str(folder))}(?![\w-])", text)
    return found


def texts_of(notebook: NotebookNode) -> list[tuple[int, str]]:
    """Every text in the notebook with the number of its cell: sources and outputs, images left out."""
    texts = []
    for number, cell in enumerate(notebook.cells, start=1):
        texts.append((number, cell.source))
        for output in cell.get("outputs", []):
            texts.append((number, output.get("text", "")))
            texts += [(number, str(data)) for kind, data in output.get("data", {}).items() if "image/" not in kind]
            texts += [(number, line) for line in output.get("traceback", [])]
    return texts


def last_states(text: str) -> str:
    """The text as it looks in the end: no colours, and of a line that was rewritten only its last state."""
    lines = [line.split("\r") for line in ANSI.sub("", text).split("\n")]
    return "\n".join(next((state for state in reversed(states) if state.strip()), "") for states in lines)


def clean_output(output: NotebookNode, execution_count: int) -> NotebookNode | None:
    """The output without what changes from run to run; None for progress bars."""
    output = copy.deepcopy(output)
    if output.output_type == "stream":
        output.text = last_states(output.text)
        if output.name == "stderr":
            kept = [line for line in output.text.split("\n") if not PROGRESS_BAR.search(line)]
            output.text = "\n".join(kept)
        return output if output.text.strip() else None
    if WIDGET in output.data:
        return None
    if output.output_type == "execute_result":
        output.execution_count = execution_count
    for kind in ("text/plain", "text/html"):
        if kind in output.data:
            output.data[kind] = ADDRESS.sub("", output.data[kind])
    return output


def render(tracked: NotebookNode, executed: NotebookNode, profile_name: str) -> NotebookNode:
    """The tracked notebook with the outputs of the executed one, which has the same code cells."""
    rendered = copy.deepcopy(tracked)
    rendered.metadata = NotebookNode(copy.deepcopy(METADATA))
    code_cells = [cell for cell in rendered.cells if cell.cell_type == "code"]
    ran = [cell for cell in executed.cells if cell.cell_type == "code"]
    for number, (cell, source) in enumerate(zip(code_cells, ran, strict=True), start=1):
        cleaned = [clean_output(output, number) for output in source.outputs]
        cell.outputs = [output for output in cleaned if output is not None]
        cell.execution_count = number
    for cell in rendered.cells:
        cell.metadata = NotebookNode({key: value for key, value in cell.metadata.items() if key == "tags"})
    run = executed.metadata.rlhf
    set_time(rendered, run.seconds, profile_name, run.hardware)
    return rendered


def why_not(notebook: Path, profile: Profile) -> str | None:
    """Why the executed copy of a notebook can't be rendered into the tracked one, or None if it can."""
    path = copy_of(notebook, profile)
    if not path.exists():
        return "it has not been executed"
    executed = nbformat.read(path, as_version=4)
    if not executed.metadata.get("rlhf", {}).get("finished"):
        return "its executed copy is not finished"
    if not is_finished(notebook, profile):
        return "its code, a module that it imports, a setting or the data changed after it was executed"
    for number, cell in enumerate(executed.cells, start=1):
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            return f"cell {number} shows an error"
    return None


def faults(rendered: NotebookNode) -> list[str]:
    """What is wrong with a rendered notebook: too big, or telling the paths of this machine."""
    found = []
    size = len(nbformat.writes(rendered).encode())
    if size > MAX_BYTES:
        found.append(f"it is {size / 1000:.0f} kB, more than {MAX_BYTES / 1000:.0f} kB; plot or print less")
    for number, text in texts_of(rendered):
        found += [f"cell {number} holds the machine path {path}" for path in machine_paths(text)[:1]]
    return found


def render_all(notebooks: list[Path], profile: Profile) -> list[str]:
    """Render all notebooks, or none of them: returns why not, a line for each notebook that can't be."""
    problems, rendered, commits = [], {}, set()
    for path in notebooks:
        if name_of(path) in STUDIES and not copy_of(path, profile).exists():
            print(f"{name_of(path)}: not executed ({STUDIES[name_of(path)]}); it keeps its outputs")
            continue
        if reason := why_not(path, profile):
            problems.append(f"{name_of(path)}: {reason}")
            continue
        executed = nbformat.read(copy_of(path, profile), as_version=4)
        commits.add(executed.metadata.rlhf.get("commit"))
        rendered[path] = render(nbformat.read(path, as_version=4), executed, profile.name)
        nbformat.validate(rendered[path])
        problems += [f"{name_of(path)}: {fault}" for fault in faults(rendered[path])]
    if problems:
        return problems
    for path, notebook in rendered.items():
        outputs.write_text(path, nbformat.writes(notebook) + "\n")
        print(f"rendered {name_of(path)}: {path.stat().st_size / 1000:.0f} kB")
    if len(commits) > 1:
        print("These notebooks were executed at different commits; `make render FORCE=1` runs all again.")
    return []


def copy_results(profile: Profile) -> None:
    """Make results/ what this run measured and drew.

    Kept is what only other commands of make write (studies.FILES, OF_COMMANDS, `make grid`) where they have not run
    here, and the rows of other seeds where `make seeds` has not. What is kept or deleted is printed.
    """
    tables = {} if (outputs.evaluation_dir(profile) / "seeds.csv").exists() else _with_other_seeds(profile)
    for folder in (outputs.evaluation_dir, outputs.plots_dir):
        new, old = folder(profile), folder(profile, outputs.REFERENCE)
        made = {path.name for path in new.iterdir() if path.suffix in (".csv", ".json", ".png")}
        for name in sorted(made):
            outputs.replace(old / name, functools.partial(shutil.copyfile, new / name))
        for path in sorted(path for path in old.iterdir() if path.name not in made):
            kept = path.name in KEPT_WITHOUT_STUDY or path.name.startswith(OF_COMMANDS)
            print(f"{outputs.show(path)}: {'kept, of an earlier study' if kept else 'deleted, no longer made'}")
            if not kept:
                path.unlink()
    for name, table in tables.items():
        outputs.write_csv(profile, name, table, outputs.REFERENCE)
        print(f"{name}: rows of the seeds {', '.join(map(str, table.seed.unique()[1:]))} kept, of earlier runs")


def _with_other_seeds(profile: Profile) -> dict[str, pd.DataFrame]:
    """This run's rows with those of other seeds in results/, by the name of the table; none where there are none."""
    if not (outputs.evaluation_dir(profile, outputs.REFERENCE) / "seeds.csv").exists():
        return {}
    tables = {}
    for name, own in seeds.rows_of(profile, profile.seed).items():
        old = outputs.read_csv(profile, name, outputs.REFERENCE)
        tables[name] = pd.concat([own, old[old.seed != profile.seed]])
    return tables
