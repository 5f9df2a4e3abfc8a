"""Rows out of data files, as they stand there: text stays text, and what can't be read is named with file and line."""

import csv
import io
import json
import re
from pathlib import Path
from typing import NamedTuple

from rlhf.download import COMPRESSED, ENDINGS

import datasets
import pyarrow
import pyarrow.parquet

ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # which describe a data set
SPLIT = re.compile(r"(?:^|[^a-z])(?:(train|training)|(valid|validation|val|dev|eval)|(test|testing))(?=[^a-z]|$)")


class Row(NamedTuple):
    where: str  # file and line, or row
    values: dict


def read(path: Path) -> dict[str, list[Row]]:
    """The rows of a file, of a folder of files or of one that save_to_disk of datasets made, by their split.

    A split is train, validation or test, as the name of a file says, or else that of its nearest folder; train where
    none says it. Raises ValueError for a file that can't be read, naming its line, and where no data file is found.
    """
    if path.is_file():
        return {"train": _read_file(path, path.name)}
    if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
        return _read_saved(path)
    splits: dict[str, list[Row]] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        hidden = any(part.startswith(".") for part in name.split("/"))
        if file.is_file() and _ending(file) in ENDINGS and file.name not in ABOUT and not hidden:
            splits.setdefault(_split_of(name), []).extend(_read_file(file, name))
    if not splits:
        raise ValueError(f"no data file is in {path.name!r}; give one with an ending of {', '.join(ENDINGS)}.")
    return splits


def _split_of(name: str) -> str:
    found = [match.lastindex for part in name.lower().split("/") if (match := SPLIT.search(part))]
    return ("train", "validation", "test")[found[-1] - 1] if found else "train"


def _ending(file: Path) -> str:
    """The ending that says what is in it: .jsonl of pairs.jsonl.gz too."""
    return Path(file.stem).suffix.lower() if file.suffix.lower() in COMPRESSED else file.suffix.lower()


def _read_saved(path: Path) -> dict[str, list[Row]]:
    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"data set {path.name!r} can't be read ({_first_line(error)}); save it anew.") from None
    parts = loaded if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}
    splits: dict[str, list[Row]] = {}
    for name, part in parts.items():
        rows = [Row(f"{name} row {number}", row) for number, row in enumerate(part, 1)]
        splits.setdefault(_split_of(name), []).extend(rows)
    return splits


def _read_file(file: Path, name: str) -> list[Row]:
    ending = _ending(file)
    if ending not in ENDINGS:
        raise ValueError(f"data file {name!r} has none of the endings {', '.join(ENDINGS)}; convert it to one.")
    try:
        # Not datasets' own readers: they take a path for a pattern, guess what text in a table means, keep a copy by
        # the file's time, and name neither line nor file.
        if ending == ".parquet":
            rows = pyarrow.parquet.ParquetFile(file).read().to_pylist()
            return [Row(f"{name} row {number}", row) for number, row in enumerate(rows, 1)]
        compression = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
        with pyarrow.input_stream(str(file), compression=compression) as stream:
            content = stream.read()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"data file {name!r} can't be read ({_first_line(error)}).") from None
    text = _decoded(content, name)
    return _json(text, name) if ending in (".json", ".jsonl") else _table(text, name, "\t" if ending == ".tsv" else ",")


def _decoded(content: bytes, name: str) -> str:
    try:
        text, start = content.decode("utf-8-sig"), content.find(b"\0")
        if start == -1:  # UTF-16 without a mark at its beginning is valid UTF-8, with a zero in every second byte
            return text
    except UnicodeDecodeError as error:
        start = error.start
    line = content.count(b"\n", 0, start) + 1
    looks = ", it looks like UTF-16" if b"\0" in content or content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    raise ValueError(f"data file {name!r}, line {line}: not UTF-8{looks}; save it in that encoding.")


def _json(text: str, name: str) -> list[Row]:
    """A list of objects, or one on each line."""
    if text.lstrip().startswith("["):
        try:
            found = [(f"{name} row {number}", value) for number, value in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as error:
            raise ValueError(f"data file {name!r}, line {error.lineno}: not JSON ({error.msg}); mend it.") from None
    else:
        found = []
        for number, line in enumerate(text.split("\n"), 1):  # splitlines would split at signs inside of a text
            if line.strip():
                try:
                    found.append((f"{name} line {number}", json.loads(line)))
                except json.JSONDecodeError as error:
                    cut = "; is the file cut off?" if number == text.count("\n") + 1 else "; mend it."
                    raise ValueError(f"data file {name!r}, line {number}: not JSON ({error.msg}){cut}") from None
    for where, value in found:
        if not isinstance(value, dict):
            raise ValueError(f"data file {where}: {type(value).__name__} found; each row must be an object.")
    return [Row(where, value) for where, value in found]


def _table(text: str, name: str, separator: str) -> list[Row]:
    """Every cell as text: `NA`, `None` and numbers are answers too, and only an empty cell is empty."""
    csv.field_size_limit(2**31 - 1)  # Windows takes no more
    reader, rows, header = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True), [], None
    try:
        for cells in reader:
            if header is None:
                header = cells
                if len(header) == 1 and re.search("[;,\t]", header[0]):
                    raise ValueError(
                        f"data file {name!r}, line 1: {header[0]!r} is one column; separate columns by "
                        f"{'a tab' if separator == chr(9) else 'commas'}."
                    )
            elif cells:
                if len(cells) != len(header):
                    raise ValueError(
                        f"data file {name!r}, line {reader.line_num}: {len(cells)} fields found where the header has "
                        f"{len(header)}; put fields that hold a separator in double quotes."
                    )
                rows.append(Row(f"{name} line {reader.line_num}", dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise ValueError(
            f"data file {name!r}, line {reader.line_num}: broken quoting ({error}); a field that begins with a double "
            f"quote must end with one, and each within it be doubled."
        ) from None
    return rows


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}" if str(error) else type(error).__name__
