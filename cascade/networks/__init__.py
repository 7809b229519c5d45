"""Networks know tensors: noisy images in, predictions out. Noise levels are the business of `cascade.denoiser`."""
