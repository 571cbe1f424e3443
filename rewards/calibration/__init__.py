"""How well each scorer tells true clips from broken ones."""
