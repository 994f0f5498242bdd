"""drgrade: reproducible grading of diabetic retinopathy from fundus photographs."""

import os

__version__ = "0.1.0"

# Torch's threads wait for each other by spinning, by default so long that two jobs on the same cores slow
# each other down ten times. After so many turns they sleep: a job alone is as fast as ever, and two share.
# It is read when torch loads, so it stands here, before any module that loads it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")
