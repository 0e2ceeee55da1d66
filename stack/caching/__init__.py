"""Feature caches: when to run (schedules), what stands in (predictor), where (sites), and what is checked before."""
