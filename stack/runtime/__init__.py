"""One call of the denoiser, from top to bottom: the hook around it, the step it belongs to, conditions and journal."""
