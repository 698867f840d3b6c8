"""The methods: one frozen dataclass an idea, one file each."""
