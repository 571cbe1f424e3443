"""Scorers from pretrained networks: those that packages ship, and those in a folder of the user's.

None of the modules here imports its package before a scorer is opened, so `rlvid rewards list`
works without any of them; opening one whose package or folder is missing raises
`needs.MissingPartError` with one line that says what to do.
"""
