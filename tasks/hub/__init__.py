"""The Hugging Face hub: what a reference names, what a repository holds, which files answer."""
