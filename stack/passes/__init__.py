"""The passes, one file per stage: distill, quantize, sparse_attn, compile, cache."""
