"""The small trained models that ship with the package, and real models as their published configurations."""
