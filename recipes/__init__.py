"""Prebuilt stacks as data: one TOML file each, installed as `stack.recipes`; read by `stack.recipe`."""
