"""Where a feature is cached: one file per site, its declaration at the top, its implementation on a model below.

Importing this package registers them all (`stack.caching.contract.SITES`).
"""

from . import block_range as block_range
from . import fastcache as fastcache
from . import per_module as per_module
from . import relational as relational
from . import tokenwise as tokenwise
from . import whole_model as whole_model
from . import x0_prediction as x0_prediction
