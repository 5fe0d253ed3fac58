"""What the commands that plan runs have in common on their command lines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlprompt.errors import UserError
from vlprompt.textfiles import path_of


def is_override(text: str) -> bool:
    """Whether an argument is a setting for Hydra: key=value, +key=value, ~key."""
    return not text.startswith("-") and ("=" in text or text.startswith("~"))


def whole_numbers(text: str) -> list[int]:
    """1,2,3"""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no list of whole numbers such as 1,2,3") from None
    return list(dict.fromkeys(numbers))


def words(text: str) -> list[str]:
    """caltech101,dtd"""
    names = list(dict.fromkeys(filter(None, (part.strip() for part in text.split(",")))))
    if not names:
        raise argparse.ArgumentTypeError(f"'{text}' names nothing: write names with commas, as caltech101,dtd")
    return names


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def add_config_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-dir", "-cd", type=path_of, help="a folder of configurations of your own")


def searched(folder: Path | None) -> list[str]:
    """A folder of configurations as an override. Raises: UserError where it is not there."""
    if folder is None:
        return []
    if not folder.is_dir():
        raise UserError(f"--config-dir={folder} is no folder")
    return [f'hydra.searchpath=["file://{folder.absolute()}"]']


def refuse(overrides: Sequence[str], keys: Sequence[str], why: str) -> None:
    """Raise a UserError where one of the keys is set."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in keys:
            raise UserError(f"'{override}' cannot be set here: {why}")
