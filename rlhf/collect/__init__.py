"""Preferences collected anew: sampled answers, raters that rank them, and the pairs and agreement that follow."""
