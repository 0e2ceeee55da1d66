"""Random misuse, seeded: drivers for long runs, of which the suite runs a small part."""
