"""Diffusers families: wiring, facts, schedules, loading."""
