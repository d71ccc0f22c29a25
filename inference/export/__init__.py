"""Results as ArviZ reads them."""

from ._arviz import to_arviz as to_arviz
from ._weights import (
    ImportanceDiagnostics as ImportanceDiagnostics,
    importance_diagnostics as importance_diagnostics,
)
