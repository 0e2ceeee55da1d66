"""Search over passes and their settings for the fastest stack that keeps within limits."""
