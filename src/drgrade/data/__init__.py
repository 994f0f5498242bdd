"""Datasets: where photographs, grades and lesion masks come from, and how they are split."""
