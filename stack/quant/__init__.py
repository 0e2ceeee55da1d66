"""Quantized linears, in the order a change runs through them.

- `schemes`: what is rounded to what. `selection`: which linears, and why the others stay.
- `backends`: who computes a scheme on a machine; `backends.pick` decides from measured figures.
- `linears`: the modules this package computes itself, from `kernels` (rounding rows, int8 products) and `formats`
  (weights stored in 8 or 4 bits).
"""
