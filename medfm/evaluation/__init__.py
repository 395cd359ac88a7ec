"""Evaluation: zero-shot, retrieval, statistics, the evaluation card."""
