"""Lesions: masks, bounding boxes, the MMDetection detector, and the patches cut around its detections."""
