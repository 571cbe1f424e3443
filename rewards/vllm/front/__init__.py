"""What runs in a model server's own process; its folder goes on the server's PYTHONPATH."""
