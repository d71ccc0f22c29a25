"""What can only be found out by trying, before the first gradient.

Where the analysis cannot prove a property (that a result does not jump, that rows of a plate do not meet, that no probability of
exactly 0 is moved), the traced program is evaluated at chosen points and the outcome decides. What cannot be decided is refused.
"""

from ._arguments import watched as watched
from ._inputs import (
    abstract as abstract,
    as_arrays as as_arrays,
    as_number as as_number,
    behind_tangents as behind_tangents,
    check_arguments as check_arguments,
    concrete as concrete,
    concrete_tree as concrete_tree,
    fingerprint as fingerprint,
    is_array as is_array,
    shape_of_input as shape_of_input,
    signature_of as signature_of,
)
from ._jump_search import CheckJumps as CheckJumps, JumpSearch as JumpSearch, search_of as search_of
from ._jumps import ProgramSearch as ProgramSearch, suspects_of as suspects_of
from ._null_probe import try_null_values as try_null_values
from ._probe_inputs import with_quick_key as with_quick_key
from ._row_probe import try_rows as try_rows
from ._subsample_probe import check_subsampled as check_subsampled
