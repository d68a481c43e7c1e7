"""Public fakes: memory networks, TUN devices and clocks that pass the same tests as the real ones."""
