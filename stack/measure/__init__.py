"""Measuring: time, quality, work and memory of a stack against the model it accelerates."""
