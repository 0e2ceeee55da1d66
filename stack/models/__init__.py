"""How denoisers of diffusers are wired, what their samplers and schedules are, and what is on them already."""
