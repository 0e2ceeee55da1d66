"""Quantized linears: how rows and weights are rounded, which kernel multiplies them, and what Amdahl's law allows."""
