"""Tasks of the benchmark of simulation-based inference (Lueckmann et al. 2021) as programs, their references, their runs."""

from .published import PUBLISHED as PUBLISHED
from .references import REFERENCES as REFERENCES
from .runs import MADE_BY as MADE_BY, METHODS as METHODS, PACKAGES as PACKAGES, measured as measured
from .tasks import TASKS as TASKS
