"""Measurements: how long things take here, and how far that is from what was to be reached. Not run by pytest."""

import os

# Before tqdm is imported: a bar that is drawn would be measured too.
os.environ.setdefault("TQDM_DISABLE", "1")
