"""`ditstack`: compare, run and explain stacks from the command line. One module per command."""

from .main import main as main
