"""What quantization does to a model, measured: its noise floor, each layer's share of the error, and the best mix."""
