"""Drawing, making and reading a study."""
