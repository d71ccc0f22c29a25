"""Scores of the light peers on a problem, and of methods that ran elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import classifiers, scores
from .fillers import FILLERS, by_interpolation
from .problem import Problem, joined


def peers(
    task: Problem,
    *,
    fillers: Sequence[str] = ("zero", "locf", "interp", "knn", "mice"),
    has_minirocket: bool = False,
) -> dict[str, dict[str, float]]:
    """Scores of the light peers by name.

    Each filler with a linear classifier, and "interp+mask" (linear on both), "forest" (on both), "mask" (linear on the mask
    alone), "minirocket" (on "interp"). They learn from training and validation series together; the temperature of their
    "calibrated" scores is that of the same classifier without the validation series, on these.
    """
    train = joined(task.train, task.valid)
    masks = [np.asarray(d.observed, float) for d in (train, task.test)]
    found: dict[str, dict[str, float]] = {}
    filled: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def add(
        name: str, classify: Callable[..., np.ndarray], inputs: Sequence[np.ndarray], point: Any
    ) -> None:
        start = time.perf_counter()
        found[name] = classified(task, classify, inputs)
        found[name] |= {} if point is None else task.point_scores(point)
        found[name]["seconds"] = time.perf_counter() - start

    for name in fillers:
        start = time.perf_counter()
        filled[name] = FILLERS[name](train, task.test)
        seconds = time.perf_counter() - start
        add(name, classifiers.linear_probs, filled[name], filled[name][1])
        found[name]["seconds"] += seconds
    inter = filled.get("interp") or by_interpolation(train, task.test)
    both = [np.concatenate(pair, -1) for pair in zip(inter, masks, strict=True)]
    add("interp+mask", classifiers.linear_probs, both, None)
    add("forest", classifiers.forest_probs, both, None)
    add("mask", classifiers.linear_probs, masks, None)
    if has_minirocket:
        add("minirocket", classifiers.minirocket_probs, inter, None)
    return found


def classified(
    task: Problem, classify: Callable[..., np.ndarray], inputs: Sequence[np.ndarray]
) -> dict[str, float]:
    """Scores of classes, as they are and calibrated, by a classifier of complete inputs.

    Args:
        task: the problem.
        classify: `(train, labels, test) -> probabilities`.
        inputs: features of training and then validation series, and of test series.
    """
    known, size = inputs[0], len(task.train.values)
    labels = np.concatenate([np.asarray(d.labels) for d in (task.train, task.valid)])
    probs = classify(known, labels, inputs[1])
    held = classify(known[:size], labels[:size], known[size:])
    return class_scores(task, probs, held)


def outside_peers(task: Problem, answer: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Scores of methods that ran elsewhere.

    Args:
        task: the problem, of which they knew what a member of the family does.
        answer: of each method "<name>.seconds" and "<name>.filled", the filled training, validation and test series one after
            the other, for a linear classifier, or "<name>.probs", class probabilities of validation and test series, or both.
    """
    found: dict[str, dict[str, float]] = {}
    size = len(task.train.values) + len(task.valid.values)
    for name in dict.fromkeys(key.rsplit(".", 1)[0] for key in answer):
        filled, probs = answer.get(f"{name}.filled"), answer.get(f"{name}.probs")
        row = {} if filled is None else task.point_scores(filled[size:])
        if probs is not None:
            held, probs = np.split(probs.astype(float), [len(task.valid.values)])
            row |= class_scores(task, probs, held)
        elif filled is not None:
            row |= classified(task, classifiers.linear_probs, np.split(filled, [size]))
        found[name] = row | {"seconds": float(answer[f"{name}.seconds"])}
    return found


def class_scores(task: Problem, probs: np.ndarray, held: np.ndarray) -> dict[str, float]:
    """Scores of test probabilities, and of those at the temperature that suits the validation probabilities `held` best."""
    heat = scores.temperature(held, np.asarray(task.valid.labels))
    labels, tempered = np.asarray(task.test.labels), scores.tempered(probs, heat)
    calibrated = {f"calibrated_{n}": v for n, v in scores.calibration(tempered, labels).items()}
    return {**scores.classification(probs, labels), "temperature": heat, **calibrated}
