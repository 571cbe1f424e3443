"""Which clip goes to which replica, when, and what becomes of it: decisions without Ray."""
