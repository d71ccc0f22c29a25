"""Normal laws of one vector as the root of its covariance: what is believed, what is met, and what is known later.

`Belief` is the law, with everything that a program does to it; numbers that are about to be seen are met in the coordinates
of its root (`_meetings.py`), and what later statements tell of these goes back through the program (`_smoothing.py`). `Noise` is
that of independent blocks, and `_roots.py` the arithmetic of roots, those of singular matrices included.
"""

from ._belief import (
    LOG_2_PI as LOG_2_PI,
    Belief as Belief,
    known as known,
    no_belief as no_belief,
)
from ._meetings import (
    ManyNumbers as ManyNumbers,
    meeting_of as meeting_of,
)
from ._noise import (
    Noise as Noise,
)
from ._roots import (
    compressed as compressed,
    free_solved as free_solved,
    lower as lower,
    orthogonal_triangular as orthogonal_triangular,
    solved as solved,
    times as times,
)
from ._smoothing import (
    MAX_AWAY as MAX_AWAY,
    Read as Read,
    SmoothingRequest as SmoothingRequest,
)
