"""Parts of benchmarks/compatibility.py."""
