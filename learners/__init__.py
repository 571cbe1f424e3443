"""The learner: a gang of DeepSpeed ranks that credits, steps, averages, publishes and saves."""
