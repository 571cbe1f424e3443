"""Orders to a live run and news of it, as files in the run folder; no sockets."""
