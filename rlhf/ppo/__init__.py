"""Proximal policy optimisation (Schulman et al. 2017) for language models: written out, and by TRL."""
