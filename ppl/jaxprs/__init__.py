"""What can be known of a traced program without running it; and the one interpreter that runs it (`_interpreter.py`).

Input: a jaxpr in which each latent draw has left a marker (`_primitive.py`). Output (`_dependence.py`): for each number, on which
sites and inputs it depends, element by element (`_relation.py`), which real numbers it can be (`_ranges.py`), and whether it may
jump (`_continuity.py`, by the table in `_catalogue.py`). `_additive.py` splits a scalar into the terms that it is a sum of.

All claims err on the safe side: what no rule covers depends on everything, can be any number, and may jump.
"""

from ._additive import Term as Term, split as split
from ._axis_rules import (
    ELEMENTWISE as ELEMENTWISE,
    relations_of_axes as relations_of_axes,
    shape_of as shape_of,
)
from ._catalogue import (
    CUTS as CUTS,
    DOMAINS as DOMAINS,
    OPAQUE as OPAQUE,
    SOLVED as SOLVED,
    STEPS as STEPS,
    ZEROS as ZEROS,
)
from ._continuity import (
    Cause as Cause,
    Fact as Fact,
    Jumps as Jumps,
    is_real as is_real,
    merged as merged,
)
from ._continuous import (
    is_continuous_call as is_continuous_call,
    solver_in as solver_in,
    tolerances_of as tolerances_of,
)
from ._dependence import Analysis as Analysis
from ._interpreter import (
    Interpreter as Interpreter,
    called as called,
    holds_marker as holds_marker,
    inner_jaxpr as inner_jaxpr,
    inner_jaxprs as inner_jaxprs,
    needed as needed,
    scan_again as scan_again,
    settled as settled,
    work_of as work_of,
)
from ._lines import (
    KnownValue as KnownValue,
    Line as Line,
    difference as difference,
    line_of as line_of,
    site_line as site_line,
)
from ._opened import (
    has_other_derivative as has_other_derivative,
    has_other_derivatives as has_other_derivatives,
    name_of as name_of,
    opened as opened,
    other_derivatives as other_derivatives,
    with_true_derivatives as with_true_derivatives,
)
from ._primitive import (
    SAMPLER as SAMPLER,
    key_p as key_p,
    mark as mark,
    mark_key as mark_key,
    site_p as site_p,
)
from ._ranges import (
    REALS as REALS,
    Range as Range,
    range_of_support as range_of_support,
    union as union,
)
from ._relation import (
    PARAMS as PARAMS,
    Link as Link,
    Relation as Relation,
    Relations as Relations,
    aligned as aligned,
    compose as compose,
    join as join,
    mixed as mixed,
)
from ._stabilisers import stabilisers as stabilisers
