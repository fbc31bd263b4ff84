"""Networks and encodings that know nothing of rays."""
