"""Figures, model cards and the HTML report."""
