"""Which numbers a run, a sweep or a paper asks for."""
