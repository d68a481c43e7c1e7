"""Scenes of the networks people are in: at home, in a café, in an office, behind two uplinks."""
