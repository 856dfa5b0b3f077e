"""What is trained on what, one task a file."""
