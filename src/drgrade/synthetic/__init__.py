"""Synthetic eyes: anatomy and lesions are drawn at random, graded by the clinical rules, then painted."""
