"""Who trains, validates and tests: drawn by patient, saved with a digest, checked for copies and overlaps."""
