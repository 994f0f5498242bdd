"""The stage ``robustness``: how results fall when the test photographs are corrupted."""
