"""Synthetic fundus photographs: random anatomy and lesions, graded by the clinical scale, then rendered."""
