"""Rollout actors: processes that sample groups of videos from the current policy."""
