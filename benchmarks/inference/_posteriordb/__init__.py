"""23 posteriors of posteriordb (https://github.com/stan-dev/posteriordb) as programs, with data and reference summaries.

Flat priors of the originals are wide proper ones. What is not of the originals is said where it stands.
"""

from .curves import CURVES
from .groups import GROUPS
from .mixtures import MIXTURES
from .posterior import Posterior as Posterior, Summary as Summary
from .regressions import REGRESSIONS

POSTERIORS = {p.name: p for p in [*GROUPS, *REGRESSIONS, *CURVES, *MIXTURES]}
