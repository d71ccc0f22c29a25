"""Programs run for all particles at once, from their jaxprs.

Input: a program traced to a jaxpr, whose first input is a random key. Output: the values of its variables for every particle,
with stops at top-level scans, between whose steps particles can be weighed and resampled; the densities of the steps ahead as
functions of where a particle stands.

Invariants: nothing of the user's code runs again after the trace; what does not differ between particles is computed once; random
keys never move with particles.
"""

from ._interpreter import (
    PARTICLE as PARTICLE,
    SHARED as SHARED,
    STREAM as STREAM,
    map_particles as map_particles,
)
from ._machine import Loop as Loop, Machine as Machine
from ._pair import LoopPair as LoopPair
from ._site_draws import (
    SiteDraws as SiteDraws,
    check_sites as check_sites,
)
from ._traced import (
    TracedProgram as TracedProgram,
    check_cells as check_cells,
    check_known as check_known,
    check_proposal as check_proposal,
    check_retained as check_retained,
    hand_over as hand_over,
    pair_loops as pair_loops,
    proposal_inputs as proposal_inputs,
    signed_outputs as signed_outputs,
)
from ._transition import (
    Future as Future,
    check_given as check_given,
    of_loop as of_loop,
    weighs_after as weighs_after,
)
from ._watching import Watched as Watched, find_watched as find_watched, watching as watching
