"""The parts of phase prompt_enhancement, and of using what it trained."""
