"""What a program makes of its arguments and of the data in them, found before anything is computed.

Input: a program and its arguments, with shapes or values. Output: refusals by the name of the argument or site, and facts that
fitting, particles and posteriors need. One abstract run tells of indices out of range, keys that are not the run's (`_runs.py`,
with `_noise.py` and, for what a program holds without its arguments, `_held.py`), of codes of categories that are read as what
they are not (`_codes.py`) and of flat laws without a total (`_improper.py`); parameters at which a law is none are computed, or
tried on draws (`_parameters.py`); runs with more rows tell what belongs to rows (`_rows.py`), the traced program whether an array
is matched to them by position (`_positions.py`), and runs with an array in the place of a None whether anything is observed
(`_observed.py`); what reads a site is in `_readers.py`.
"""

from ._improper import (
    UNNORMALISED as UNNORMALISED,
    check_proper as check_proper,
    improper_sites as improper_sites,
)
from ._noise import check_noise as check_noise
from ._observed import (
    categories_of as categories_of,
    check_branches as check_branches,
    check_categories as check_categories,
    check_free as check_free,
    check_none as check_none,
    check_numbers as check_numbers,
    check_observed as check_observed,
    tells as tells,
    warn_of_unread as warn_of_unread,
)
from ._positions import by_position as by_position
from ._readers import Readers as Readers
from ._rows import (
    Axis as Axis,
    Met as Met,
    Rows as Rows,
    met as met,
    rows_of as rows_of,
    unbound as unbound,
)
from ._runs import (
    abstract_run as abstract_run,
    check_new as check_new,
    check_run as check_run,
    checked as checked,
    evidence_of as evidence_of,
    later_indices as later_indices,
    may_index as may_index,
    tried_run as tried_run,
    whole as whole,
)
