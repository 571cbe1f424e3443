"""Where prompts and clips come from: the tiny world, prompt files and folders of videos."""
