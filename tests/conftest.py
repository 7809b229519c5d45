"""Common ground of all tests: no network, few threads, fixed seeds."""

import os

# Before huggingface_hub is imported, which reads it once; subprocesses inherit it.
# A test of what happens online patches `huggingface_hub.constants.HF_HUB_OFFLINE`.
os.environ["HF_HUB_OFFLINE"] = "1"

import random

import hypothesis
import numpy as np
import pytest
import torch

# Tiny networks lose more to starting threads than they gain from many. The variable is for subprocesses.
THREADS = min(4, torch.get_num_threads())
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))

# A red test is red again on the next run and on the next machine.
hypothesis.settings.register_profile("cascade", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("cascade")


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
