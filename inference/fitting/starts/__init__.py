"""Where a posterior is, before anything is trained: its unconstrained coordinates, its modes, Normals around them, guides there.

    Space(program, args)                 the latent sites as coordinates u of R^d, and log p(u, data) with the Jacobian
    find_starts(space, args, key)        Newton's steps from dispersed points -> Starts
    start_without_search(...)            one point, for very many coordinates
    AutoWhitenedNormal, AutoMeanField    guides that begin there

`Starts.best` is the Normal with the largest evidence lower bound of all along all paths; its factor makes the posterior's scale
and its correlations those of a standard Normal. `Starts.modes` are the ends of paths that are modes and lie apart.
"""

from ._search import (
    Start as Start,
    Starts as Starts,
    find_starts as find_starts,
    start_without_search as start_without_search,
)
from ._space import Landscape as Landscape, Space as Space
from ._whitened import (
    AutoMeanField as AutoMeanField,
    AutoWhitenedNormal as AutoWhitenedNormal,
    OwnGuide as OwnGuide,
)
