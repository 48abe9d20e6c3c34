"""The state of a rank: its devices or the server, its networks, and who takes part."""
