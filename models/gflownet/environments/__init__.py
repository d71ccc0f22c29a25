"""Environments of GFlowNets: how objects are built, one action at a time, and what they are worth.

`Environment` is the interface, `check` tries one's own; the others are environments of the literature.
"""

from ._bits import Bits as Bits
from ._conditional import Conditional as Conditional
from ._environment import Environment as Environment, Position as Position, check as check
from ._fragments import Fragments as Fragments
from ._hypergrid import Hypergrid as Hypergrid
from ._phylogenies import Forest as Forest, Phylogenies as Phylogenies
from ._sets import Sets as Sets
from ._strings import Strings as Strings, Writing as Writing
from ._structure import Structures as Structures, bge_scores as bge_scores
