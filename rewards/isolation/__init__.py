"""Scorers in a Python interpreter of their own, asked over pipes."""
