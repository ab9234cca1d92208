"""Tests on real guests; what runs them is `bench.vm`."""
