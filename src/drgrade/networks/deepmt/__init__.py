"""The networks of DeepMT-DR (Wang et al., AAAI 2021): super-resolution, segmentation, grading, GMSV."""
