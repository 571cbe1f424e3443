"""The one loop: groups from plan to ready, and the learner that consumes them."""
