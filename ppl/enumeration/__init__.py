"""Discrete sites summed out: which states are evaluated together, and in which order sums are taken.

`_layout.py` and `_weights.py` serve strategy "enum" within an expectation; `_structure.py`, `_sum_product.py` and `_forward.py`
serve `ppl.eliminate`, which sums whole programs over given factors.
"""

from ._layout import (
    MAX_LANES as MAX_LANES,
    Dependences as Dependences,
    Lanes as Lanes,
    is_listed as is_listed,
    is_sampled as is_sampled,
    lanes_of_terms as lanes_of_terms,
    layouts_of as layouts_of,
    mixing as mixing,
)
from ._structure import Structure as Structure, structure_of as structure_of
from ._sum_product import Factor as Factor, Kind as Kind, sum_product as sum_product
from ._weights import (
    LaneWeights as LaneWeights,
    digits as digits,
    lane_values as lane_values,
    states as states,
)
