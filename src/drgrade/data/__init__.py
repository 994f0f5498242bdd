"""Datasets: where photographs, grades and lesion masks come from."""
