"""Light peers: classifiers of complete series, maps (train, labels, test) -> class probabilities. aeon loads on use."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


def linear_probs(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Class probabilities of a multinomial logistic regression with C = 0.1 on flattened features."""
    model = LogisticRegression(C=0.1, max_iter=2000)
    return model.fit(_rows(train), labels).predict_proba(_rows(test))


def forest_probs(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Class probabilities of a random forest of 100 trees on flattened features."""
    model = RandomForestClassifier(100, random_state=0)
    return model.fit(_rows(train), labels).predict_proba(_rows(test))


def minirocket_probs(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Class probabilities of a logistic regression, C = 0.1, on standardised MiniRocket features (aeon; numba compiles first).

    Reference: Dempster, Schmidt and Webb 2021, arXiv:2012.08791.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of aeon's imports
        from aeon.transformations.collection.convolution_based import MiniRocket

        rocket = MiniRocket(random_state=0)
        features = [
            rocket.fit_transform(train.transpose(0, 2, 1)),
            rocket.transform(test.transpose(0, 2, 1)),
        ]
    scaler = StandardScaler().fit(features[0])
    scaled: list[Any] = [scaler.transform(x) for x in features]
    return linear_probs(scaled[0], labels, scaled[1])


def _rows(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(x), -1)
