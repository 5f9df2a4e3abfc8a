"""The Hugging Face Hub: publishing the checkpoints of a run with their model cards, and pulling them again."""
