"""Sparse and 8-bit attention: which blocks to keep (maps), who computes them (kernels, flex), when it pays (cost)."""
