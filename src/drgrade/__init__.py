"""drgrade: reproducible grading of diabetic retinopathy from fundus photographs."""

__version__ = "0.1.0"
