"""Scorers and the pool that serves them."""
