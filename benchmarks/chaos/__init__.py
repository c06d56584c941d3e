"""What nodes are put through to measure whether they judge each other rightly."""
