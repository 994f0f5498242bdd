"""Figures, model cards and the pages people look at."""
