"""Training, validation and test splits: by patient, saved with a digest, checked for duplicates and leaks."""
