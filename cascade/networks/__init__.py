"""Networks know tensors: noisy images in, predictions out. Noise levels and what a prediction means belong to
`cascade.denoiser`.
"""
