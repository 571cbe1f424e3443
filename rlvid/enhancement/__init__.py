"""Prompt enhancement: a language model that rewrites prompts, and what its rewrites are worth."""
