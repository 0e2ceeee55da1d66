"""Training distilled adapters: a teacher's trajectories, a LoRA that crosses them in few steps, and its card."""
