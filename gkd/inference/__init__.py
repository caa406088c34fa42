"""Frozen networks over data: embeddings, teachers."""
