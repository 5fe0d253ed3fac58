"""Tables that people write with a spreadsheet or an editor: labels of images, names of classes."""

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlprompt.data.sources.layouts import PART_FOLDERS, SUFFIXES, Labelled, normal, pairs
from vlprompt.errors import UserError
from vlprompt.textfiles import path_of, read_text

DELIMITERS = (",", ";", "\t")
COLUMNS = ("path", "label")  # that a table of labels needs
TEXTS = (
    *("caption", "captions", "text", "texts", "txt", "description", "descriptions", "sentence", "sentences", "comment"),
    *("title", "alt", "alt_text", "report", "prompt", "conversations"),
)
"""Columns that say in words what an image shows."""
CLASSES = {"label", "class", "category_id"}  # columns next to which texts are no matter
BINARY = (".parquet", ".arrow", ".xlsx", ".xls", ".ods")
SUFFIX = "|".join(suffix.removeprefix(".") for suffix in SUFFIXES)
LONG = 4  # words of a cell that is a sentence rather than a class
HEADINGS = ("name", "names", "class", "classes", "class_name", "classname", "label", "labels")  # of names alone


@dataclass(frozen=True)
class Row:
    """A row of a table, the number of its first line, and its text where it is no table after all."""

    line: int
    cells: list[str]  # without the white space around them
    text: str


def read_table(base: Path, path: Path, *, gaps_allowed: bool = False) -> list[Labelled]:
    """The rows of a CSV file with the columns path, label and, if wanted, split. Paths are relative to `base`.

    `gaps_allowed`: images that are not there are listed all the same.

    Raises: UserError that names the line.
    """
    images: dict[str, Labelled] = {}
    rows = list(rows_of(path))
    refuse_captions(path, [row["label"] for _, row in rows])
    for line, row in rows:
        file = image_file(base, row["path"])
        part = PART_FOLDERS.get(row["split"].lower()) if "split" in row else None
        if not row["path"] or not row["label"]:
            raise UserError(f"{path}, line {line}: path or label is empty.")
        if "split" in row and part is None:
            raise UserError(f"{path}, line {line}: split is '{row['split']}', allowed are train, val and test.")
        if not file.is_relative_to(base):
            raise UserError(f"{path}, line {line}: {row['path']} is not below {base}; paths are relative to it.")
        if not file.is_file() and not gaps_allowed:
            raise UserError(f"{path}, line {line}: there is no file {file}; paths are relative to {base}.")
        new = Labelled(file.relative_to(base).as_posix(), plain(row["label"]), part)
        if images.setdefault(new.image, new) != new:
            raise UserError(f"{path}, line {line}: {new.image} has another label or split in an earlier line.")
    return list(images.values())


def image_file(base: Path, path: str) -> Path:
    """The file that a table means, which lies below `base` or is to be refused: .. and ~ are followed first."""
    file = Path(os.path.normpath(base / path_of(path)))
    if not file.is_file() and "\\" in path:  # written on Windows
        file = Path(os.path.normpath(base / path.replace("\\", "/")))
    if not file.is_relative_to(base):  # by another name of the same folder, perhaps
        real, folder = Path(os.path.realpath(file)), Path(os.path.realpath(base))
        return base / real.relative_to(folder) if real.is_relative_to(folder) else file
    return file


def refuse_captions(path: Path, labels: Sequence[str]) -> None:
    """Raises: UserError where the labels are sentences, most of them in one row alone."""
    n_words = sum(len(label.split()) for label in labels)
    if 2 * len(set(labels)) > len(labels) > 1 and n_words >= LONG * len(labels):
        raise pairs(f"the column label of {path} holds sentences ('{labels[0][:80]}')")


def rows_of(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column."""
    if path.suffix.lower() in BINARY:
        raise UserError(f"{path} is no table in text: save it as CSV, with the header path,label,split.")
    text = read_text(path)
    heads = {delimiter: parse(text, delimiter)[:1] for delimiter in DELIMITERS}
    fits = [d for d, rows in heads.items() if rows and set(COLUMNS) <= {cell.lower() for cell in rows[0].cells}]
    if not fits:
        begin = heads[","][0].text if heads[","] else ""
        if texts := column_of_texts(text if text.lstrip()[:1] in ("{", "[") else begin):
            raise pairs(f"{path} has {texts}")
        raise UserError(f"{path} begins with '{begin[:80]}', allowed is the header path,label,split.")
    header, *rows = parse_strictly(path, text, fits[0])
    columns = [cell.lower() for cell in header.cells]
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise UserError(f"{path} has two columns '{twice}': leave one of them.")
    for row in rows:
        if any(row.cells[len(columns) :]):
            raise UserError(
                f"{path}, line {row.line} has {len(row.cells)} cells, the header {len(columns)} "
                f"({','.join(columns)}): put quotes around a cell that holds the separator."
            )
        yield row.line, dict(zip(columns, row.cells + [""] * len(columns), strict=False))


def column_of_texts(text: str) -> str:
    """What JSON, or the first line of a table, shows of texts about images; nothing where it shows a column of classes.

    That line may be a header, or a row without a header: a file or an address, and a sentence.
    """
    line = ",".join(re.findall(r'"(\w+)"\s*:', text)) or text
    for delimiter in (*DELIMITERS, "|"):
        cells = [cell.strip(' "').lower() for cell in line.split(delimiter)]
        if column := next((cell for cell in cells if cell in TEXTS), ""):
            return "" if set(cells) & CLASSES else f"a column '{column}'"
        files = [cell for cell in cells if "://" in cell or re.search(rf"\.({SUFFIX})(#\d+)?$", cell)]
        if len(cells) > 1 and files and any(len(cell.split()) >= LONG for cell in cells if cell not in files):
            return f"sentences ('{line[:80]}')"
    return ""


def parse(text: str, delimiter: str, *, strict: bool = False) -> list[Row]:
    """The rows that are not empty. Raises: csv.Error with the line's number where `strict` and quotes do not match."""
    lines = io.StringIO(text, newline="").readlines()
    if lines and (named := re.fullmatch(r'"?sep=(.)"?', lines[0].strip("\r\n"))):  # a note for Excel
        lines[0], delimiter = "\n", named[1]
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=strict)
    rows, start = [], 0
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                whole = "".join(lines[start : reader.line_num]).strip()
                rows.append(Row(start + 1, [cell.strip() for cell in cells], whole))
            start = reader.line_num
    except csv.Error as error:
        if strict:
            raise csv.Error(f"line {start + 1} is no row of a CSV file ({error})") from None
    return rows


def parse_strictly(path: Path, text: str, delimiter: str) -> list[Row]:
    """The rows that are not empty. Raises: UserError that names the line where quotes do not match."""
    try:
        return parse(text, delimiter, strict=True)
    except csv.Error as error:
        raise UserError(f"{path}, {error}: correct it.") from None


def read_names(path: Path, keys: Sequence[str]) -> dict[str, str]:
    """Class names by key, from rows of key and name; or from a name a line, in the order of `keys`.

    Raises: UserError where a class is left without a name or has two, or where it is not clear which are the names.
    """
    text = read_text(path)
    tables = {delimiter: parse(text, delimiter) for delimiter in DELIMITERS}
    n_keys = {
        delimiter: sum(len(row.cells) > 1 and normal(row.cells[0]) in keys for row in table)
        for delimiter, table in tables.items()
    }
    delimiter = max(DELIMITERS, key=n_keys.__getitem__)  # the first of equals
    rows = parse_strictly(path, text, delimiter)
    if n_keys[delimiter]:
        return names_by_key(path, rows, keys)
    if any(table and all(len(row.cells) > 1 for row in table) for table in tables.values()):
        raise UserError(
            f"{path} has several cells a line, and the first is none of the classes ('{keys[0]}' to '{keys[-1]}'): "
            f"give lines such as '{keys[0]},NAME', or put quotes around names that hold a comma."
        )
    return names_in_order(path, rows, keys)


def names_by_key(path: Path, rows: Iterable[Row], keys: Sequence[str]) -> dict[str, str]:
    """From rows of key and name; rows of other keys, a header among them, are left out."""
    named: dict[str, str] = {}
    for row in rows:
        key, *cells = row.cells
        if normal(key) not in keys:
            continue
        commas = row.text.split(",")
        spaced = [part.startswith(" ") for part in commas[1:]]
        if '"' not in row.text and len(commas) > 2 and not spaced[0] and all(spaced[1:]):
            cells = [row.text.partition(",")[2]]  # commas of a sentence
        if any(cells[1:]):
            raise UserError(
                f"{path}, line {row.line} has {len(row.cells)} cells, allowed are two, folder and name: "
                "put quotes around a name that holds the separator."
            )
        name = plain(cells[0]) if cells else ""
        if name and named.setdefault(normal(key), name) != name:
            raise UserError(f"{path}, line {row.line}: '{key}' has another name in an earlier line, leave one of them.")
    if nameless := next((key for key in keys if key not in named), None):
        raise UserError(f"{path} has no name for '{nameless}': add a line '{nameless},NAME'.")
    return {key: named[key] for key in keys}


def names_in_order(path: Path, rows: list[Row], keys: Sequence[str]) -> dict[str, str]:
    """From a name a line; a comma is part of a name where other lines have none."""
    as_table = f"give lines such as '{keys[0]},NAME'"
    if len(rows) == len(keys) + 1 and rows[0].text.lower() in HEADINGS:
        rows = rows[1:]
    if len(rows) != len(keys):
        raise UserError(
            f"{path} has {len(rows)} names for {len(keys)} classes ('{keys[0]}' to '{keys[-1]}'): "
            f"give one a line in their order, or {as_table.removeprefix('give ')}."
        )
    names = [plain(row.cells[0] if len(row.cells) == 1 else row.text) for row in rows]
    first = [normal(re.split(r"[\s:=|]", row.text, maxsplit=1)[0]) for row in rows]
    if set(first) == set(keys) and names != first:
        raise UserError(f"{path} has lines that begin with the classes ('{rows[0].text[:80]}'): {as_table}.")
    if set(names) == set(keys) and names != list(keys):
        raise UserError(f"{path} has the classes' own names in another order: sort them, or {as_table}.")
    return dict(zip(keys, names, strict=True))


def plain(name: str) -> str:
    """A name in a single line, its letters spelt one way."""
    return normal(" ".join(name.split()))
