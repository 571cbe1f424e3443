"""The phases of a recipe, one file each."""
