"""The reward model: the pairs that it is trained on, its training, and scoring with it."""
