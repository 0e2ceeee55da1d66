"""What quantization does to a model, measured: recorded calls and the noise floor."""
