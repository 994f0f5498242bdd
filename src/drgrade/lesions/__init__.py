"""Lesions: masks, boxes, the MMDetection detector, and the patches cut around what it finds."""
