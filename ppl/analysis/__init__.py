"""From a program and a choice of strategies to everything that an estimate needs to know.

`analyse` traces the program once under the engine, analyses the jaxpr, splits the result into terms, closes the relations over
sites, lays out enumerated sites, and refuses what a strategy cannot do soundly. All of this happens at trace time; nothing of it
is in the compiled program. `plan_of` tells it to the user.
"""

from ._analyse import analyse as analyse
from ._analysed import Analysed as Analysed
from ._control import Controlled as Controlled
from ._flip_groups import flip_groups as flip_groups
from ._plan import Plan as Plan, SitePlan as SitePlan, plan_of as plan_of
from ._read_together import read_together as read_together
from ._refusals import check_sites as check_sites
from ._replay import (
    check_replay as check_replay,
    replay_axes as replay_axes,
    replay_groups as replay_groups,
)
from ._rows import keep_rows as keep_rows, rows_meet as rows_meet
from ._subsampled import (
    Meeting as Meeting,
    RowProgram as RowProgram,
    meetings as meetings,
    population_differs as population_differs,
    traced_rows as traced_rows,
)
from ._upstream import axis_order as axis_order, relations_of as relations_of
