"""Metrics, intervals and the leaderboard: from prediction tables only."""
