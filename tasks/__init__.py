"""llamake: make for local LLM servers."""
