"""ditstack: composable acceleration for diffusion transformers.

from stack import Stack
fast = Stack(pipe).quantize("int8").sparse_attn(keep=0.5).cache("svd")
image = fast("a red ring left of a blue star").images[0]
"""

from .builder import Stack as Stack
from .errors import StackError as StackError
from .report import Report as Report

__version__ = "0.1.0"
