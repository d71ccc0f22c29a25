"""Labelled series that come inside aeon's wheel, read as package data: nothing is downloaded and aeon is not imported."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from lapilli.models.imputation import Series, series

NAMES = ("JapaneseVowels", "JapaneseVowels_eq", "ItalyPowerDemand", "BasicMotions")


def load(name: str) -> tuple[Series, Series]:
    """Train and test series of a data set, complete and in their own units.

    Args:
        name: one of `NAMES`: JapaneseVowels (270 / 370 series, 7 to 29 steps, 12 channels, 9 classes), JapaneseVowels_eq (the
            same on 25 steps), ItalyPowerDemand (67 / 1,029, 24 steps, 1 channel, 2 classes), BasicMotions (40 / 40, 100
            steps, 6 channels, 4 classes).

    Raises:
        ValueError: unknown name.
        ImportError: aeon is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"load: no data set {name!r}; choose from {list(NAMES)}.")
    spec = importlib.util.find_spec("aeon")
    if spec is None or spec.origin is None:
        raise ImportError("load reads data from aeon: pip install 'lapilli[data]'.")
    folder = Path(spec.origin).parent / "datasets" / "data" / name.removesuffix("_eq")
    parts = [_read(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST")]
    classes = sorted({label for _, labels in parts for label in labels})
    num_steps = max(len(x) for values, _ in parts for x in values)
    train, test = (
        _stacked(values, [classes.index(x) for x in labels], num_steps) for values, labels in parts
    )
    return train, test


def _read(path: Path) -> tuple[list[np.ndarray], list[str]]:
    """Series [T, D] and labels of a .ts file: a line per series, channels between colons, the label last."""
    lines = path.read_text(encoding="utf-8").split("@data")[1].split()
    rows = [line.split(":") for line in lines]
    values = [np.array([[float(x) for x in c.split(",")] for c in row[:-1]]).T for row in rows]
    return values, [row[-1] for row in rows]


def _stacked(values: list[np.ndarray], labels: list[int], num_steps: int) -> Series:
    lengths = np.array([len(x) for x in values])
    stacked = np.zeros((len(values), num_steps, values[0].shape[1]))
    for row, x in zip(stacked, values, strict=True):
        row[: len(x)] = x
    return series(stacked, lengths=lengths, labels=np.array(labels))
