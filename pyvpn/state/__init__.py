"""What the hub remembers: users, devices, leases, settings and the audit log."""
