"""ToCa and DuCa: what each step is, and which tokens it computes."""
