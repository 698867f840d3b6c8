"""`python -m percent_ray`."""

from percent_ray.cli import main

main()
