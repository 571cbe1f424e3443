"""What the phases of a recipe cost, before one of them is run: FLOPs, GPU-hours, memory, disk."""
