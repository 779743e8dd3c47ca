"""Other people's endpoints as providers: dialects, cost, fidelity."""
