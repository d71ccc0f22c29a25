"""Learning a law known up to its constant without losing its modes.

Whole
    anneal, Annealed            from an energy to trained networks, by tempered particles

Parts
    unnormalised                an energy as a program, for `inference.tempered_smc`
    distilled, Distilled        the marginal network, trained until held-out rows say that it is enough
    scored                      rows, orders and what the chain says of them, for `mam.regress`
    Remembered                  networks beside states that are known by heart
    bracket                     log Z from both sides: what the model has lost
"""

from ._annealing import (
    Annealed as Annealed,
    anneal as anneal,
    bracket as bracket,
    unnormalised as unnormalised,
)
from ._distilled import Distilled as Distilled, distilled as distilled, scored as scored
from ._remembered import Remembered as Remembered
