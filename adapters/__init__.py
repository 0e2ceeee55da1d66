"""Distilled adapters as data: one TOML card each, installed as `stack.adapters`."""
