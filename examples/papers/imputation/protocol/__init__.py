"""The protocol that compares members of `lapilli.models.imputation` with light peers: hide cells, impute, classify, score.

A *problem* is a data set, a mechanism, a rate and a seed (`problem.py`); `comparison.py` scores fillers with classifiers of
scikit-learn and aeon, `training.py` trains and scores the members and GRU-D.
"""

from .classifiers import linear_probs as linear_probs
from .comparison import classified as classified, outside_peers as outside_peers, peers as peers
from .data_sets import load as load
from .fillers import FILLERS as FILLERS
from .gru_d import GRUD as GRUD
from .problem import Problem as Problem, joined as joined, problem as problem
from .training import (
    Recipe as Recipe,
    Trained as Trained,
    evaluate as evaluate,
    recurrent_peer as recurrent_peer,
    train as train,
)
