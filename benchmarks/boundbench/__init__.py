"""Parts of the benchmark of bounds."""
