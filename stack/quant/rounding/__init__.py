"""Weights rounded to a few bits with the help of calibration: grids and error feedback."""
