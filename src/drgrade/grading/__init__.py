"""Graders: each is one module that registers under its own name."""
