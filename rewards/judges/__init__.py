"""Judging clips by asking a vision-language model behind an OpenAI-compatible server."""
