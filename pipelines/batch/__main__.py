"""`python -m pipelines.batch`: what torchrun and accelerate launch start."""

import sys

from pipelines.cli import main

sys.exit(main(["batch", *sys.argv[1:]]))
