"""Originals of other trainers become Hugging Face folders: read as data, streamed, and proven before they are recorded."""
