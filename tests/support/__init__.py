"""What several test modules share: builders of inputs and helpers around real tools, no tests."""
