"""The assembly: services that own ports, store, control socket and Linux state.

Only the core owns sessions; only these services own what has to be undone. A process runs one of
them and imports the other one's half of the code not at all.
"""
