"""What a run did and who decided it: ``audit.jsonl``, one entry a line, each holding the digest of the one before."""
