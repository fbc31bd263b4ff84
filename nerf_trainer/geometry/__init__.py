"""Pure geometry on tensors, without project types."""
