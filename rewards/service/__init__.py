"""The reward pool over HTTP, and the scorers that ask such a service."""
