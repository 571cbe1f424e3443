"""Ways to make a score of what a judge says; one file each."""
