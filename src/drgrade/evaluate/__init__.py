"""Metrics, confidence intervals and the leaderboard, computed from prediction tables only."""
