"""Block-sparse attention: which blocks to keep (maps), who computes them (kernels, flex), when it pays (cost)."""
