"""Scorers, their aggregation and the pool that serves them."""
