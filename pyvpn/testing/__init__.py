"""Public fakes: memory networks, TUNs and clocks that pass the same tests as the real ones."""
