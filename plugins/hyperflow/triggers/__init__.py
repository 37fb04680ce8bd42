"""What waits, without a worker, for a job on a KVM host."""
