"""Learning a law known up to its constant without losing its modes.

Whole
    anneal, Annealed            from an energy to trained networks, by tempered particles

Parts
    distilled, Distilled        the marginal network, trained until held-out rows say that it is enough
    scored                      rows, orders and what the chain says of them, for `mam.regress`
    Remembered                  networks beside states that are known by heart
"""

from ._annealing import Annealed as Annealed, anneal as anneal
from ._distilled import Distilled as Distilled, distilled as distilled, scored as scored
from ._remembered import Remembered as Remembered
