"""Load tests: many clients that do what containers do, and compare every byte that they read."""
