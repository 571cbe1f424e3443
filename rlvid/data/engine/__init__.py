"""The data engine's library: prompts for weak dimensions, filters, and the manifest of clips."""
