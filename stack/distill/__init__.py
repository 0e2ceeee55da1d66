"""Distilled adapters: cards, schedules, LoRA files, and what a call may ask of them."""
