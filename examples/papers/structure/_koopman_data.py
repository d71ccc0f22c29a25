"""Series for koopman.py: complete, of one length, and between 0 and 1 as far as those to train on reach."""

import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

NAMES = ("sines", "ItalyPowerDemand", "JapaneseVowels", "BasicMotions", "sunspots")
WINDOW = 24


class Data(NamedTuple):
    """Series [series, steps, channels] to train on, held-out ones, and as many others to stand for draws of a perfect model."""

    train: np.ndarray
    test: np.ndarray
    floor: np.ndarray


def load(name: str, num: int, rng: np.random.Generator) -> Data:
    """A data set.

    Args:
        name: one of `NAMES`.
        num: series of sines to train on, and to hold out.
        rng: of sines; of others, of the choice of the floor among series to train on, and of as many that are held out.
    """
    if name == "sines":
        return Data(*(sines(num, rng) for _ in range(3)))
    train, test = sunspots() if name == "sunspots" else from_aeon(name)
    low, high = train.min((0, 1)), train.max((0, 1))
    train, test = ((x - low) / (high - low) for x in (train, test))
    num = min(len(train), len(test))
    floor, test = (x[rng.choice(len(x), num, replace=False)] for x in (train, test))
    return Data(*(x.astype(np.float32) for x in (train, test, floor)))


def sines(num: int, rng: np.random.Generator) -> np.ndarray:
    """sin(f t + p), f, p ~ U(0, 0.1) of a series and channel, moved to 0 .. 1 (Yoon et al. 2019): [num, 24, 5]."""
    frequency, phase = 0.1 * rng.random((2, num, 1, 5))
    return ((np.sin(frequency * np.arange(WINDOW)[:, None] + phase) + 1) / 2).astype(np.float32)


def from_aeon(name: str) -> tuple[np.ndarray, np.ndarray]:
    """ItalyPowerDemand: its larger part to train on; JapaneseVowels: stretched to 25 steps; BasicMotions: in windows."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "imputation"))
    from protocol.data_sets import load as read

    file = "JapaneseVowels_eq" if name == "JapaneseVowels" else name
    first, second = (np.asarray(part.values) for part in read(file))
    if name == "BasicMotions":
        first, second = (np.concatenate([windows(x) for x in part]) for part in (first, second))
    return (second, first) if name == "ItalyPowerDemand" else (first, second)


def sunspots() -> tuple[np.ndarray, np.ndarray]:
    """Monthly means since 1749, shipped with statsmodels, in windows of two years.

    Overlapping ones of the first two thirds of the record are to train on, those of the last third are held out.
    """
    spec = importlib.util.find_spec("statsmodels")
    if spec is None or spec.origin is None:
        raise ImportError("sunspots come from statsmodels: pip install 'lapilli[data]'.")
    file = Path(spec.origin).parent / "datasets" / "sunspots" / "src" / "sunspots_monthly.dat"
    lines = [line.split() for line in file.read_text(encoding="latin-1").splitlines()]
    years = [line[1:] for line in lines if len(line) == 13 and line[0].isdigit()]
    record = np.array(years, float).reshape(-1, 1)
    end = len(record) * 2 // 3
    return windows(record[:end], stride=4), windows(record[end:])


def windows(x: np.ndarray, stride: int = WINDOW) -> np.ndarray:
    """Those of a series [steps, channels] that fit into it, one every `stride` steps."""
    return np.stack([x[t : t + WINDOW] for t in range(0, len(x) - WINDOW + 1, stride)])
