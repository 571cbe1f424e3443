"""The loop in virtual time: virtual ports, the schedule they make, and what it costs."""
