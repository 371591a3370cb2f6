"""A simulated FR3 that speaks the real arm's network protocol, on the loopback interface only."""
