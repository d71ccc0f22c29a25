"""Probabilistic imputation of tables and of time series, and classification of series with missing cells.

For tables, `TableImputer` makes multiple imputations with draws of the parameters, which a regression survives, and `pool`
applies Rubin's rules (`tables`). What follows is of series, and of tables far from any normal law.

One program, `programs`, whose switches make the members of a family. For a series x with observed cells x_o, missing cells x_m,
mask s and class y:

    z ~ p(z),   x | z ~ p(x | z), cell by cell,   s | x ~ prod Bernoulli(p(x)),   y | x ~ Categorical(f(x)),

and the bound, from K draws of the guide q(z | x_o, s) and J draws of x_m at each,

    L = E log 1/(K J) sum_kj p(y | x_kj) p(s | x_kj) p(x_o | z_k) p(z_k) / q(z_k | x_o, s)  <=  log p(y, x_o, s),

which is `inference.iwelbo(model, guide, num_particles=K, num_imputations=J, per="rows")`; an average over J outside the
logarithm is `num_replicates=J` instead.

| member | classes y | mask s | prior of z | K | reference |
|---|---|---|---|---|---|
| HI-VAE | | | N(0, I) | 1 | Nazabal et al. 2020, arXiv:1807.03653, for real-valued cells |
| GP-VAE | | | Gaussian process | 1 | Fortuin et al. 2020, arXiv:1907.04155 |
| MIWAE | | | N(0, I) | > 1 | Mattei and Frellsen 2019, arXiv:1812.02633 |
| not-MIWAE | | yes | N(0, I) | > 1 | Ipsen et al. 2021, arXiv:2006.12871 |
| supMIWAE | yes | | N(0, I) | > 1 | Ipsen et al. 2022 |
| supnotMIWAE | yes | yes | Gaussian process | > 1 | Kim et al. 2023, arXiv:2308.06738 |

`obs_dropout` is the training transformation of the last. `impute` draws from a trained member: with `data.until(t)` as an
observer at step t does, and with `method="smc"` by particles over time, where the weights of whole series collapse;
`cell_scores` says how good they are where the truth is known. `SeriesImputer` and `SeriesClassifier` are members of the family as
estimators of scikit-learn, for tables and series of one's own. The protocol that compares the members with light peers is
`examples/papers/imputation/protocol`.
"""

from typing import TYPE_CHECKING

from .._on_use import estimators_of
from .._series import (
    Series as Series,
    Standardisation as Standardisation,
    series as series,
    standardise as standardise,
)
from ._arviz import to_arviz as to_arviz
from ._dropout import obs_dropout as obs_dropout
from ._gp import (
    cauchy_kernel as cauchy_kernel,
    own_cholesky as own_cholesky,
    smoothed as smoothed,
    step_log_prob as step_log_prob,
)
from ._imputation import Imputation as Imputation
from ._impute import ImputationDraws as ImputationDraws, draws as draws, impute as impute
from ._masks import (
    MECHANISMS as MECHANISMS,
    blocks as blocks,
    mar as mar,
    mcar as mcar,
    mnar as mnar,
)
from ._networks import (
    Classifier as Classifier,
    Decay as Decay,
    GaussianHead as GaussianHead,
    memory as memory,
    missingness as missingness,
)
from ._over_time import OverTime as OverTime
from ._programs import (
    Imputer as Imputer,
    programs as programs,
)
from ._scores import cell_scores as cell_scores
from .tables import Pooled as Pooled, pool as pool

if TYPE_CHECKING:
    from .estimators import (
        SeriesClassifier as SeriesClassifier,
        SeriesImputer as SeriesImputer,
        TableImputer as TableImputer,
    )

__all__ = [
    "TableImputer",
    "pool",
    "SeriesImputer",
    "SeriesClassifier",
    "to_arviz",
    "obs_dropout",
    "cauchy_kernel",
    "own_cholesky",
    "smoothed",
    "Imputation",
    "draws",
    "impute",
    "OverTime",
    "MECHANISMS",
    "blocks",
    "mar",
    "mcar",
    "mnar",
    "Classifier",
    "GaussianHead",
    "memory",
    "missingness",
    "Imputer",
    "programs",
    "cell_scores",
    "Series",
    "Standardisation",
    "series",
    "standardise",
]


__getattr__ = estimators_of(__name__, "SeriesImputer", "SeriesClassifier", "TableImputer")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
