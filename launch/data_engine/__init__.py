"""The data engine's processes: the writer behind a server, rendering on the actors, the parts."""
