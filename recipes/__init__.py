"""Prebuilt stacks as data: one TOML file each, installed as `stack.recipes`; read by `stack.recipe`."""

from stack.recipe import Recipe as Recipe
from stack.recipe import list_recipes as list_recipes
from stack.recipe import load_recipe as load_recipe
