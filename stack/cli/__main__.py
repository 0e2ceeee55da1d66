"""`python -m stack.cli`, the same as `ditstack`."""

from .main import main

main()
