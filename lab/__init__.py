"""A vCenter, a guest and a KVM host on one machine of one's own, all real programs."""
