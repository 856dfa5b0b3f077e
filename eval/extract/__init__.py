"""From images to named arrays of features."""
