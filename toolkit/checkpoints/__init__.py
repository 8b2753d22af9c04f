"""Weights on disk: safetensors read by ranges, folders checked before they are trusted, and copied bit for bit."""
