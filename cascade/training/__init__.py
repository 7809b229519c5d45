"""Training: losses, the loop, averaged weights, checkpoints."""
