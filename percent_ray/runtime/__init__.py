"""The three roles, in Ray actors or in one process."""
