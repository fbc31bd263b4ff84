"""Scoring rendered views against photographs: image metrics, summaries, the evaluator."""
