"""Executing the notebooks of the numbered folders, and rendering the tracked ones."""
