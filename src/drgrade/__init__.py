"""drgrade: reproducible grading of diabetic retinopathy from fundus photographs."""

import os

__version__ = "0.1.0"

# Torch's threads wait by spinning: two jobs on the same cores then slow each other down ten times.
# It is read when torch loads, so it stands here, before any module that loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
