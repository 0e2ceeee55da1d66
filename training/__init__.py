"""How the reference models and their reader are trained."""
