"""Merging models: one file a method, streamed over safetensors."""
