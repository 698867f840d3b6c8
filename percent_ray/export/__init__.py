"""What a run has trained, as files that other programs load. Works on files: no model is loaded."""
