"""Tasks of the benchmark of simulation-based inference (Lueckmann et al. 2021) as programs, and their references."""

from .references import LOG_DENSITIES as LOG_DENSITIES, REFERENCES as REFERENCES, read as read
from .scores import c2st as c2st
from .tasks import TASKS as TASKS, Task as Task
