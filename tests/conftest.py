"""What every test stands on: shapes are checked while tests run, and small random models."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

# Before the first import of imagebart. Only the modules whose signatures speak of tensors: the
# others say in a ValueError what was wrong with a value, which a type checker would forestall.
SHAPED = "diffusion editing model perceptual sampling transformer denoiser vqgan".split()
install_import_hook([f"imagebart.{name}" for name in SHAPED], "beartype.beartype")

import pytest  # noqa: E402

torch.set_num_threads(2)
settings.register_profile("stable", derandomize=True, deadline=None, max_examples=150)
settings.load_profile("stable")
