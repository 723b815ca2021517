"""Many environments at once: read, built with all that they share made once, and looked after."""
