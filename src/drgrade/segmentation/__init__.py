"""Lesion segmentation: training on tiles, prediction of whole photographs, and their measurement."""
