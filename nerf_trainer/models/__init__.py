"""Models: from a batch of posed frames to predictions and an objective."""
