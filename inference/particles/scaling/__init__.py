"""Many runs side by side: replicates that do not meet, and islands that do.

Both pool runs so that the evidence stays unbiased.
"""

from ._islands import IslandsResult as IslandsResult, islands as islands
from ._replicate import Replicates as Replicates, replicate as replicate
