"""The simulated radio cell, the cost of a round in it, and the clock that adds both up."""
