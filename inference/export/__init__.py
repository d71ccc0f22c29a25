"""Results as ArviZ reads them: `to_arviz`, on top of `inference`."""

from ._arviz import to_arviz as to_arviz
