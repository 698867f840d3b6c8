"""Where the roles run: in Ray actors, or in this process."""
