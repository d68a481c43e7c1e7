"""Everything that touches Linux: the TUN device, the privileged child and what it undoes."""
