"""A recipe calibrated on a model: searched, checked on prompts it has not seen, and written back as data."""
