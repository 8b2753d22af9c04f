"""Originals of other trainers to Hugging Face folders: read as data, streamed, and proven before they are recorded."""
