"""Finding schedules, forecasts and thresholds on finished pictures."""
