"""Weights rounded to a few bits with the help of calibration: grids, error feedback, balance, low-rank correction."""
