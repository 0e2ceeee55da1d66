"""Feature caches: when to run (schedules), what stands in (predictor), where (sites), and how they are calibrated."""
