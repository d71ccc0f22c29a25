"""Vectors whose coordinates keep linear relations: as a constraint, as a law, as a projection.

Statements are read as exact rows (`_statements.py`), rows are solved for one coordinate after the other, the last first
(`_elimination.py`), so that each coordinate has bounds that are affine in those before it. From the bounds: a constraint with a
triangular bijection (`_constraint.py`, `_bijection.py`) and a law that is truncated in turn (`_truncated.py`).
"""

from ._bijection import TriangularTransform as TriangularTransform
from ._constraint import LinearConstraints as LinearConstraints
from ._truncated import TruncatedInTurn as TruncatedInTurn
