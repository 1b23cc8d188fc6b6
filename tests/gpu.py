"""Where tests marked `gpu` run: `python -m pytest -m gpu`. HARNESS_TEST_DEVICE=cpu runs them without one, to see that they do."""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("HARNESS_TEST_DEVICE", "cuda")
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU")]
