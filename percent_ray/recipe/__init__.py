"""What a run is asked to do: the recipe, its files, its errors, its command line."""
