"""Tiny random pipelines of every model family, of its own classes, built offline."""
