"""A stand-in for llama.cpp, and checkpoints for it, so that tests of the graph take seconds."""
