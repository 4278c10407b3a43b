"""The video transformer."""
