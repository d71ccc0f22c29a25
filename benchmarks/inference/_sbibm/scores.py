"""The benchmark's own score."""

import warnings

import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier


def c2st(reference, draws, seed=1):
    """Held-out accuracy of the benchmark's classifier, 1/2 where nothing tells the two apart: both z-scored by the first.

    In single precision, as there.
    """
    mean, sd = reference.mean(0), reference.std(0, ddof=1)
    x = np.concatenate([(reference - mean) / sd, (draws - mean) / sd]).astype(np.float32)
    y = np.repeat([0, 1], [len(reference), len(draws)])
    width = 10 * x.shape[1]
    net = MLPClassifier(
        activation="relu",
        hidden_layer_sizes=(width, width),
        max_iter=10_000,
        solver="adam",
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folds = KFold(n_splits=5, shuffle=True, random_state=seed)
        return float(cross_val_score(net, x, y, cv=folds, scoring="accuracy").mean())
