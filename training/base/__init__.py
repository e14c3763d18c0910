"""The frozen FLUX.1-Kontext: where it comes from, VAE, text, quantization, flow and sampler."""
