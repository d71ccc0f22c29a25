"""Discrete sites summed out: which states are evaluated together, and in which order sums are taken.

One planner serves strategy "enum" within an expectation and `ppl.eliminate`, which sums whole programs. Both lay out sites
(`_layout.py`), find chains and those that share a recursion (`_chains.py`), order the elimination (`_order.py`), multiply and
sum factors (`_factors.py`, `_semirings.py`), and run forward recursions (`_forward.py`). They differ in what is left: an
expectation asks for the probability of the states that each number shows (`_expectation.py` says how), `eliminate` for one
total (`_total.py`).
"""

from ._chains import (
    Reader as Reader,
    is_fully_enumerated as is_fully_enumerated,
    is_sampled as is_sampled,
)
from ._expectation import (
    Dimensions as Dimensions,
    StateWeights as StateWeights,
    dimensions_of as dimensions_of,
    layouts_of as layouts_of,
)
from ._factors import ELEMENT as ELEMENT, REPLICATE as REPLICATE, Factor as Factor
from ._layout import (
    MAX_STATES as MAX_STATES,
    digits as digits,
    enumerated_values as enumerated_values,
    mixing as mixing,
    states as states,
)
from ._semirings import Kind as Kind
from ._total import Structure as Structure, structure_of as structure_of, sum_product as sum_product
