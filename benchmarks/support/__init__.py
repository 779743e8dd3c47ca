"""What the benchmarks share. Scripts to run stand one folder up."""
