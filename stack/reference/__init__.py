"""The small trained models that ship with the package: scenes, prompts, denoiser, reader, training."""
