"""Example configurations, weights and arguments, from which `stack.models.small` makes small instances of denoisers."""
